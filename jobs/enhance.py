"""Write a prompt for every identity (Diffusion-ReID, section 3.1).

In: the real training images of `ingest/observations` that have an identity.
Out: `enhance/prompts`, one row an identity: its images under one camera, their description, the
prompt with the token of the identity and the prompt without it.
Why: a model that is tuned to an identity needs words for what it shares with others, and one word
that means this identity alone.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("enhance")
