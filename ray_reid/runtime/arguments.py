"""Arguments that several commands have."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_reid.places import Place


def place(text: str) -> "Place":
    """Where a run is: a path, or a URI of a bucket."""
    # pyarrow comes with it, for which `--help` does not wait.
    from ray_reid import places

    try:
        return places.place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
