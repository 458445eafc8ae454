"""Fine-tune a text-to-image model to each identity, and generate its images (Diffusion-ReID, 3.1).

In: the real training images of `ingest/observations`, and the table `prompts` of `enhance`, one
row an identity.
Out: `personalise/observations`, with more images for identities that have few; dropped images stay
in the table with the reason of the filter, and identities that failed with theirs.
Why: labelled images of the same people or vehicles in other poses and scenes.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("personalise")
