"""Train a network on generated images before it is trained on real ones.

In: the ingested and the generated images.
Out: `pretrain/model`, a package that `train.start: pretrain` begins with, and the history.
Why: generated identities cost nothing, and what is learned from them carries over
(Diffusion-ReID).
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("pretrain")
