"""Adapt the text-to-image model to the target cameras (Vehicle-Diff, section III-B).

In: a few real training images of `ingest/observations`; their labels are not read.
Out: `adapt/candidates`, low-rank adapters with what they scored, and the name of the best.
Why: a model that has seen the web draws showroom photographs. Its images help training only once
they look like those of the street cameras.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("adapt")
