"""The release of the package, which keys, stamps and cards name."""

VERSION = "0.3.0"
