"""Train models that have seen no image of the identities that they judge.

In: the labelled training images of `ingest/observations`.
Out: of each source, two ReID models, each of one half of its identities, and its features of the
other half.
Why: whether a generated image keeps its identity, neither the generator may say nor the filter that
chose it.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("judges")
