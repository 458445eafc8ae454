"""Prompts to images to verdicts, in one stream."""

from ray_reid.cli import job_main
from ray_reid.generation.generate import check, generate_job, outside
from ray_reid.runtime.run import Job

JOB = Job(
    "generate",
    generate_job,
    needs=("adapt",),
    sections=("seed", "models", "prompts", "generate", "filters"),
    check=check,
    outside=outside,
)

if __name__ == "__main__":
    job_main(JOB)
