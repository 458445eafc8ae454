"""Paint other clothes on the people of every training image (DLCR, section 3.1).

In: `ingest/observations` and the descriptions of `describe`.
Out: `inpaint/observations`, some images of every real one in other clothes; all that is not painted
keeps its value to the bit.
Why: a network that sees one person in many clothes stops recognising people by their clothes.
"""

from ray_reid.cli import job_main

if __name__ == "__main__":
    job_main("inpaint")
