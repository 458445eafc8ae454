"""Observations to a model package."""

from ray_reid.cli import job_main
from ray_reid.runtime.run import Job
from ray_reid.training.train import train_job

JOB = Job("train", train_job, needs=("ingest",), sections=("seed", "train"), scratch=("ray",))

if __name__ == "__main__":
    job_main(JOB)
