"""Embeddings to metrics, pictures and the stamped model package."""

from ray_reid.cli import job_main
from ray_reid.evaluation.evaluate import evaluate_job
from ray_reid.runtime.run import Job

JOB = Job("evaluate", evaluate_job, needs=("ingest", "train", "embed"), sections=("evaluate",))

if __name__ == "__main__":
    job_main(JOB)
