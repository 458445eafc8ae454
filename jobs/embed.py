"""Query and gallery images to embeddings."""

from ray_reid.cli import job_main
from ray_reid.evaluation.embed import check, embed_job, outside
from ray_reid.runtime.run import Job

JOB = Job(
    "embed",
    embed_job,
    needs=("ingest", "train"),
    sections=("embed",),
    check=check,
    outside=outside,
)

if __name__ == "__main__":
    job_main(JOB)
