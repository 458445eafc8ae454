"""Train the arms of the recipe over several seeds and set their figures side by side.

In: `ingest/observations` and the generated images; every arm changes the recipe (`compare.arms`).
Out: a table and a picture: mean and deviation of each arm (Vehicle-Diff, Table II and Fig. 5).
Why: one training says little; arms that differ in one thing say what that thing is worth.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("compare")
