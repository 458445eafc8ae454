"""Values that people give, in arguments and recipes."""

import argparse
import os
from pathlib import Path
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


def expanded(path: str | Path) -> Path:
    """Replace a leading `~` by the home folder that it stands for.

    Raises:
        ValueError: If that folder is unknown, as for a user id without a name and without HOME.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"the home folder in {str(path)!r} is unknown; set HOME, or give the whole path"
        ) from error


def name_home() -> None:
    """Set HOME where no home is known: Ray Train looks it up when it is imported.

    The folder does not exist, as that of Debian's users without a home: a path below it is refused.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/nonexistent"
