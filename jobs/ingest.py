"""The sources of the recipe to observations."""

from ray_reid.cli import job_main
from ray_reid.datasets.ingest import check, ingest_job, outside
from ray_reid.runtime.run import Job

JOB = Job(
    "ingest", ingest_job, sections=("ingest",), check=check, outside=outside, scratch=("plan",)
)

if __name__ == "__main__":
    job_main(JOB)
