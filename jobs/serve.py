"""Serve the gallery of a run until stopped.

In: a run directory whose `index` is published.
Out: an HTTP service that answers `POST /v1/search`.
Why: what `ray-reid serve` does, as a script for `ray job submit`.
"""

import sys

from ray_reid.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
