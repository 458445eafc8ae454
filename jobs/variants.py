"""Queries to the same people in other clothes, for prediction refinement."""

from ray_reid.cli import job_main
from ray_reid.generation.variants import check, outside, variants_job
from ray_reid.runtime.run import Job

JOB = Job(
    "variants",
    variants_job,
    needs=("ingest", "describe"),
    sections=(
        "seed",
        "refine.num_variants",
        "refine.steps",
        "refine.scale",
        "models.parser",
        "models.inpainting",
        "models.precision",
        "outfits.clothes",
        "outfits.method",
        "outfits.strength",
        "outfits.template",
        "outfits.margin",
        "outfits.min_mask",
        "outfits.max_mask",
        "generate.guidance",
        "generate.image_size",
        "generate.negative_prompt",
    ),
    check=check,
    outside=outside,
)

if __name__ == "__main__":
    job_main(JOB)
