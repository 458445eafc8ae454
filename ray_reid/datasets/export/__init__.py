"""Tables to the layouts of peers' toolkits, so that they can train on ours (docs/layouts.md).

In trees of files, identities and cameras get numbers from 1 in the order of their names;
`identities.csv` and `cameras.csv` beside the images say which is which.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ray_reid.datasets.export import imagefolder, market1501, parquet, vehiclex
from ray_reid.datasets.export.writing import ExportSummary
from ray_reid.places import Place
from ray_reid.runtime.results import RunState

TABLES = ("generate", "inpaint", "personalise", "ingest")
LAYOUTS: Mapping[str, Callable[[Place, Path], ExportSummary]] = {
    "vehiclex": vehiclex.write_vehiclex,
    "market1501": market1501.write_market1501,
    "imagefolder": imagefolder.write_imagefolder,
    "parquet": parquet.write_parquet,
}


def find_table(run: Place, job: str | None = None) -> Place:
    """The observations that a run has: those generated, or else those read.

    Raises:
        ValueError: If the run has no current result of the job that is asked for, or of any.
    """
    state = RunState.read(run)
    if job is None:
        job = next((name for name in TABLES if name in state), "ingest")
    return state.folder(job) / "observations"
