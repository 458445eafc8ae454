"""Unlabelled images of the target cameras to an adapter of the text-to-image model."""

from ray_reid.cli import job_main
from ray_reid.generation.adapt import STATES, adapt_job, check, outside
from ray_reid.runtime.run import Job

JOB = Job(
    "adapt",
    adapt_job,
    needs=("ingest",),
    sections=(
        "seed",
        "models",
        "prompts.template",
        "adapt",
        "generate.guidance",
        "generate.steps",
        "generate.image_size",
        "generate.negative_prompt",
    ),
    check=check,
    outside=outside,
    scratch=("images", STATES),
)

if __name__ == "__main__":
    job_main(JOB)
