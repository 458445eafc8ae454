"""Generated images to what is kept of them: counts, Table VI of Vehicle-Diff, contact sheets."""

from ray_reid.cli import job_main
from ray_reid.generation import frechet
from ray_reid.generation.review import filter_job
from ray_reid.runtime.run import Job

JOB = Job(
    "filter",
    filter_job,
    needs=("ingest", "adapt", "generate"),
    sections=("seed", "models", "frechet"),
    check=lambda recipe: frechet.check(recipe.frechet),
    uses_ray=False,
)

if __name__ == "__main__":
    job_main(JOB)
