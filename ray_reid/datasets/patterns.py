"""Patterns that tell identity and camera from the names or folders of images, and guessing one."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ray_reid.datasets import reading, splits

DEFAULT = r"(?P<identity>.+)_cam(?P<camera>\d+)"
_CAMERA = r"[cC](?:am(?:era)?)?[-_ ]?(?P<camera>\d+|(?<=[-_ ])[a-zA-Z])"
_IDENTITY = r"(?P<identity>[^/]+)"
# What people's folders look like, the most telling first.
GUESSES = (
    DEFAULT,
    r"^(?P<identity>\d+)_c(?P<camera>\d+)(?!\d)",
    rf"(?:^|/){_CAMERA}/{_IDENTITY}/[^/]+$",
    rf"(?:^|/){_IDENTITY}/{_CAMERA}/[^/]+$",
    rf"(?:^|/){_IDENTITY}/(?:[^/]*[-_])?c(?:am)?(?P<camera>\d+)(?!\d)[^/]*$",
    rf"(?:^|/){_IDENTITY}/[^/]+$",
)
MIN_IDENTITIES = 4
_NO_IDENTITY = re.compile(r"(?i)c(am(era)?)?[-_ ]?(\d+|[a-z])")


def searched(pattern: str, place: PurePosixPath) -> str:
    """Return what a pattern is searched in, without the suffix of the file.

    A pattern with a slash is searched in the whole path relative to the root, any other in the
    base name alone: the name of a folder above must not be taken for an identity.
    """
    return place.with_suffix("").as_posix() if "/" in pattern else place.stem


def guess(places: Sequence[PurePosixPath]) -> str | None:
    """Return the first of `GUESSES` that fits every path; None if none does.

    It fits if there are identities enough to train and test on, with two images each on average,
    and two cameras where it has the group `camera`. Names of splits and cameras are no identities.
    """
    return next((pattern for pattern in GUESSES if _fits(pattern, places)), None)


def _fits(pattern: str, places: Sequence[PurePosixPath]) -> bool:
    compiled = re.compile(pattern)
    identities, cameras = set(), set()
    for place in places:
        match = compiled.search(searched(pattern, place))
        if match is None:
            return False
        identities.add(match["identity"])
        cameras.add(match.groupdict().get("camera"))
    if any(_NO_IDENTITY.fullmatch(name) or splits.word(name) for name in identities):
        return False
    enough = len(identities) >= MIN_IDENTITIES and len(places) >= 2 * len(identities)
    return enough and (len(cameras) > 1 or cameras == {None})


def place_in(root: Path, file: Path) -> PurePosixPath:
    """Return the path of a file relative to its root."""
    return PurePosixPath(reading.relative(root, file))
