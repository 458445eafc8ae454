"""Run a sweep: the settings of a sweep file times its seeds, by Ray Tune.

In: a file of `jobs/sweeps`, and the run directory (`--run`).
Out: `tune-NAME/` in the run: a table and a picture; every trial's result in `trials/`.
Why: what `ray-reid tune` does, as a script for `ray job submit`.
"""

import sys

from ray_reid.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
