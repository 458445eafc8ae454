"""Read the sources of the recipe into one table of observations.

In: any number of data sets, each read by the reader that its source names (`ingest.sources`).
Out: `ingest/observations`, one row an image with its identity, camera and split. Images that do not
decode stay in the table with a reason.
Why: from here on every job reads one table, wherever its images came from.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("ingest")
