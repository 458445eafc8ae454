"""Run every job of a recipe in order; what `ray-reid run` does, as a script for `ray job submit`.

In: the name of a recipe or its file, and the run directory (`--run`).
Out: one directory a job in the run, `report.html` and `metrics.json`.
Why: jobs that are done already are skipped, so the same command resumes a run that was killed.
`ray_reid/pipelines.py` has the order of the jobs.
"""

import sys

from ray_reid.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
