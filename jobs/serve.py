"""Serve the gallery of a run until stopped; `ray-reid serve` as a script for `ray job submit`."""

import sys

from ray_reid.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
