"""Training images to the same people in other clothes, in one stream."""

from ray_reid.cli import job_main
from ray_reid.generation.inpaint import check, outside, redress_job
from ray_reid.runtime.run import Job

JOB = Job(
    "generate",
    redress_job,
    needs=("ingest", "describe"),
    sections=(
        "seed",
        "models.parser",
        "models.inpainting",
        "models.precision",
        "outfits",
        "generate.guidance",
        "generate.image_size",
        "generate.negative_prompt",
        "generate.steps",
        "guidance",
        "filters",
    ),
    check=check,
    outside=outside,
)

if __name__ == "__main__":
    job_main(JOB)
