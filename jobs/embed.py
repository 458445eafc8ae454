"""Embed the query and gallery images with the trained model.

In: `ingest/observations`, the package of `train` and, where queries are refined, `variants`.
Out: `embed/embeddings`, unit-norm vectors beside a colour histogram, the floor without learning.
Why: embeddings are made once; figures and galleries are made of them many times.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("embed")
