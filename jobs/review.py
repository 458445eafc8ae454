"""Review what was generated: count, measure and show what the filters kept and dropped.

In: `generate/observations` or `inpaint/observations`, whose rows the filters have marked in the
stream, and the real images of `ingest/observations`.
Out: counts by reason, Frechet distances of each stage (Vehicle-Diff, Table VI) and contact sheets.
Why: a person should see what a model is about to be trained on.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("review")
