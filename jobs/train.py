"""Train a network on labelled images, real and generated, into a model package.

In: `ingest/observations` and, where the recipe has them, the generated images.
Out: `train/model`, a package that `ray_reid.load` reads, and the history of the training.
Why: this is what everything before was made for.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("train")
