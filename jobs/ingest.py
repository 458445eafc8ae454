"""Ingest: read the sources of the recipe and write the table of observations."""

from ray_reid.ingest import ingest_job, outside
from ray_reid.run import Job

JOB = Job(
    "ingest",
    ingest_job,
    sections=("ingest",),
    outside=outside,
    scratch=("plan",),
)

if __name__ == "__main__":
    from ray_reid.cli import job_main

    job_main(JOB)
