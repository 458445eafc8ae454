"""Trainings on real and generated images, side by side over several seeds."""

from ray_reid.cli import job_main
from ray_reid.experiments.compare import check, compare_job, outside
from ray_reid.runtime.run import Job

JOB = Job(
    "compare",
    compare_job,
    needs=("ingest", "generate"),
    sections=("seed", "train", "embed", "evaluate", "compare"),
    check=check,
    outside=outside,
)

if __name__ == "__main__":
    job_main(JOB)
