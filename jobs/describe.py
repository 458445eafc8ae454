"""Describe every set of clothes in words (DLCR, section 3.1).

In: the real training images of `ingest/observations` that know their clothes.
Out: `describe/descriptions.parquet`, one description a clothes id, which a person may edit.
Why: the descriptions are the prompts of the clothes that `inpaint` paints on other people.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("describe")
