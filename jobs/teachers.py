"""Train the models that judge what is generated (Diffusion-ReID, section 3.2).

In: the labelled training images of `ingest/observations`.
Out: one ReID model of each source data set, its features of these images, and thresholds by their
false-match rates.
Why: a generated image is worth something if it shows its identity. Who else than a model of the
same data set could tell?
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("teachers")
