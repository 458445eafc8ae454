"""Training images to one description of every set of clothes."""

from ray_reid.cli import job_main
from ray_reid.generation.describe import check, describe_job, outside
from ray_reid.runtime.run import Job

JOB = Job(
    "describe",
    describe_job,
    needs=("ingest",),
    sections=(
        "describe",
        "models.describer",
        "models.summariser",
        "models.precision",
    ),
    check=check,
    outside=outside,
)

if __name__ == "__main__":
    job_main(JOB)
