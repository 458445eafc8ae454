"""Embeddings to a searchable gallery."""

from ray_reid.cli import job_main
from ray_reid.gallery.gallery import index_job
from ray_reid.runtime.run import Job

JOB = Job("index", index_job, needs=("ingest", "embed"), sections=("index",), uses_ray=False)

if __name__ == "__main__":
    job_main(JOB)
