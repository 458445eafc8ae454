"""Generate labelled vehicles from prompts, filtered in the same stream (Vehicle-Diff).

In: the best adapter of `adapt`, and the prompt library, whose combinations of attributes are the
identities.
Out: `generate/observations`; dropped images stay in the table with the reason of the filter.
Why: images with labels that nobody had to give.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("generate")
