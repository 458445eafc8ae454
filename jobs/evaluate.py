"""Score the embeddings by the protocol of the recipe.

In: `embed/embeddings` and the images that the pictures show.
Out: `evaluate/metrics.json` with the protocol stamp, pictures, and `evaluate/model`, the package
with its card, figures and thresholds.
Why: figures without their protocol do not compare.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("evaluate")
