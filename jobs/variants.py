"""Paint other clothes on the people of every query, for prediction refinement (DLCR, Alg. 1).

In: the query images of `ingest/observations` and the descriptions of `describe`.
Out: `variants/observations`, `refine.num_variants` images of each query.
Why: a person who has changed clothes is found by the variant that wears the new ones.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("variants")
