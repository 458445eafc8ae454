"""Make a searchable gallery of the embeddings.

In: `embed/embeddings` and the images of `ingest/observations`.
Out: `index/`, a gallery that never changes; `gallery/`, the live one, is seeded from it.
Why: a service answers from the live gallery without the tables of the run.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("index")
