"""Splits of a folder: what its sub-folders say, or else held-out identities and chosen queries."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Row

TEST = "test"
VAL = "val"
# Names of folders, in any case, by the word that they stand for.
_NAMES = {
    "train": ("train", "training"),
    TEST: ("test", "testing"),
    VAL: ("val", "valid", "validation"),
    "query": ("query", "queries", "probe"),
    "gallery": ("gallery",),
}
_WORDS = {name: said for said, names in _NAMES.items() for name in names}
# Words that say which images are in which split, the first complete set of them.
LAYOUTS: Sequence[Mapping[str, str]] = (
    {"train": "train", "query": "query", "gallery": "gallery"},
    {"train": "train", TEST: TEST},
    {"train": "train", VAL: TEST},
)
SEARCH = {"query", "gallery"}
HELP = (
    "name the sub-folders train, query and gallery, or train and test (or val), or give train_list "
    "or test_list"
)


def word(folder: str) -> str | None:
    """Return the word that a folder stands for if it is named after a split."""
    return _WORDS.get(folder.lower())


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Return the folders that are named after a split, by its word: `Train`, `testing`, `probe`.

    Raises:
        ValueError: If two have the same word.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        said = word(name)
        if said is not None and found.setdefault(said, name) != name:
            raise ValueError(
                f"the folders {found[said]!r} and {name!r} beside each other both say {said}; "
                "rename or unite them"
            )
    return found


def of_folders(places: Sequence[PurePosixPath], root: Path) -> list[str | None]:
    """Return the split of each image by the first folder of its path that is named after one.

    In a folder `test` (or `val` where there is no `test`), folders `query` and `gallery` say more.

    Args:
        places: Paths of images relative to `root`.

    Returns:
        `train`, `test`, `query`, `gallery` or, for an image outside these, None; no list at all
        where the folders say nothing.

    Raises:
        ValueError: If they say something but not enough, such as `train` beside `others`.
    """
    words = _words(places)
    for parent, names in _children(places).items():
        try:
            split_folders(names)
        except ValueError as error:
            raise ValueError(f"{str(root / parent)!r}: {error}") from error
    found = set(words) - {None}
    for layout in LAYOUTS:
        # Query and gallery alone are a test without a training, and not a test to be divided.
        needed = SEARCH if layout.keys() > SEARCH else layout.keys()
        if found >= needed and (needed == SEARCH or not found & SEARCH):
            return [None if said is None else layout.get(said) for said in words]
    if len(set(words)) > 1 or len(_hinted(places)) > 1:
        tops = {place.parts[0] for place in places}
        named = {top for top in tops if word(top)}
        shown = [*sorted(named), *sorted(tops - named)]
        raise ValueError(
            f"the images of {str(root)!r} lie in {shown[:4]}{' ...' if shown[4:] else ''}, which "
            f"does not say which are for training; {HELP}"
        )
    return []


def _words(places: Iterable[PurePosixPath]) -> list[str | None]:
    """The word of each image; None where no folder of its path is named after a split."""
    named = [[said for part in place.parent.parts if (said := word(part))] for place in places]
    tested = TEST if any(said[:1] == [TEST] for said in named) else VAL
    inner = {name for said in named if said[:1] == [tested] for name in said[1:]}
    if inner <= SEARCH:
        named = [said[-1:] if said[:1] == [tested] else said for said in named]
    return [next(iter(said), None) for said in named]


def _children(places: Iterable[PurePosixPath]) -> dict[PurePosixPath, set[str]]:
    """The folders below each folder that lead to images."""
    found: dict[PurePosixPath, set[str]] = {}
    for folder in {place.parent for place in places}:
        while folder.parts:
            found.setdefault(folder.parent, set()).add(folder.name)
            folder = folder.parent
    return found


def _hinted(places: Iterable[PurePosixPath]) -> set[str]:
    """Words that are a part of folders' names, such as `image_train`; half a sign of a split."""
    folders = {part for place in {p.parent for p in places} for part in place.parts}
    parts = {part for folder in folders for part in re.split(r"[^a-z]+", folder.lower())}
    return {_WORDS[part] for part in parts if part in _WORDS}


def held_out(
    identities: set[str], fraction: float, seed: int, number: int | None = None
) -> set[str]:
    """Choose the test identities; adding identities moves no other to another side.

    At least two identities stay on each side.

    Args:
        fraction: Share of the identities that is chosen, more or less.
        number: How many are chosen exactly, in the place of `fraction`; adding identities may then
            move others.

    Raises:
        ValueError: If there are fewer than four, or `number` leaves fewer than two.
    """
    if len(identities) < 4:
        raise ValueError(
            f"{len(identities)} identities cannot be split into train and test; it takes at "
            "least 4 (2 each)"
        )
    order = sorted(identities, key=lambda name: (reading.share(seed, name), name))
    if number is not None:
        if not 2 <= number <= len(order) - 2:
            raise ValueError(
                f"test_identities is {number}, but must be from 2 to {len(order) - 2}: of the "
                f"{len(order)} identities, 2 at least are trained on"
            )
        return set(order[:number])
    wanted = sum(reading.share(seed, name) < fraction for name in order)
    return set(order[: min(max(wanted, 2), len(order) - 2)])


def choose_queries(
    rows: Sequence[Row], root: Path, seed: int, query_cameras: Sequence[str] = ()
) -> list[str]:
    """Turn the split `test` of the rows into `query` and `gallery`, in place.

    Args:
        rows: All rows of a source; rows of other splits stay as they are.
        root: Folder of the images, for the sentences.
        seed: Draws the query of each identity and camera.
        query_cameras: Test images of these cameras are the queries; empty draws one query for
            each identity and camera, or takes the first camera where each has one image.

    Returns:
        Warnings.

    Raises:
        ValueError: If a query camera is unknown, or no identity gives a query that any gallery
            image answers.
    """
    test = [row for row in rows if row[schema.SPLIT] == TEST]
    _check_cameras(test, query_cameras, root)
    identities: dict[str, list[Row]] = {}
    for row in test:
        identities.setdefault(row[schema.IDENTITY], []).append(row)
    alone = []
    for identity, images in identities.items():
        queries = _queries(images, seed, query_cameras)
        for row in images:
            row[schema.SPLIT] = "gallery"
        for row in queries:
            row[schema.SPLIT] = "query"
        # An identity that no query camera sees is an ordinary part of the gallery.
        if not queries and (not query_cameras or _seen_by(images, query_cameras)):
            alone.append(identity)
    return _report(alone, test, len(identities), query_cameras, root)


def _queries(images: Sequence[Row], seed: int, query_cameras: Sequence[str]) -> list[Row]:
    """The queries of one identity; none where its other images could not answer any."""
    if query_cameras:
        queries = _seen_by(images, query_cameras)
        return queries if len(queries) < len(images) else []
    cameras: dict[str | None, list[Row]] = {}
    for row in images:
        cameras.setdefault(row[schema.CAMERA], []).append(row)
    order = sorted(cameras, key=lambda camera: (camera is None, camera or ""))
    if len(order) > 1 and len(images) == len(order):
        return cameras[order[0]]

    def drawn(row: Row) -> tuple[float, str]:
        return reading.share(seed, row[schema.OBSERVATION_ID]), row[schema.OBSERVATION_ID]

    return _answerable([min(cameras[camera], key=drawn) for camera in order], images)


def _seen_by(images: Sequence[Row], cameras: Sequence[str]) -> list[Row]:
    return [row for row in images if row[schema.CAMERA] in cameras]


def _answerable(candidates: Sequence[Row], images: Sequence[Row]) -> list[Row]:
    """Give queries back to the gallery, the last first, until it answers those that remain."""
    gallery = Counter(row[schema.CAMERA] for row in images)
    gallery.subtract(row[schema.CAMERA] for row in candidates)
    queries = []
    for row in reversed(candidates):
        camera = row[schema.CAMERA]
        # The Market rule removes its own camera's images; an unknown camera is nobody's own.
        if gallery.total() > (0 if camera is None else gallery[camera]):
            queries.append(row)
        else:
            gallery[camera] += 1
    return queries[::-1]


def _check_cameras(test: Sequence[Row], query_cameras: Sequence[str], root: Path) -> None:
    cameras = {row[schema.CAMERA] for row in test} - {None}
    unknown = [camera for camera in query_cameras if camera not in cameras]
    if unknown:
        raise ValueError(
            f"query camera {unknown[0]!r} is on no test image of {str(root)!r}; choose from "
            f"{sorted(cameras)}"
        )


def _report(
    alone: Sequence[str],
    test: Sequence[Row],
    total: int,
    query_cameras: Sequence[str],
    root: Path,
) -> list[str]:
    """Say which identities give no query, and why."""
    if not alone:
        return []
    camera = next(row[schema.CAMERA] for row in test if row[schema.IDENTITY] == alone[0])
    where = f"e.g. {alone[0].partition(':')[2]!r}" + ("" if camera is None else f" on {camera!r}")
    if query_cameras:
        rule = f"appears on the query cameras {list(query_cameras)} only"
        needs = "choose fewer query_cameras"
    elif camera is None:
        rule = "has a single image"
        needs = "a query needs a second image of its identity"
    else:
        rule = "appears on one camera only"
        needs = "the Market rule needs two cameras; does the group `camera` match the right field?"
    if not any(row[schema.SPLIT] == "query" for row in test):
        raise ValueError(f"every test identity of {str(root)!r} {rule} ({where}): {needs}")
    return [
        f"{len(alone)} of {total} test identities of {str(root)!r} give no query and stay in the "
        f"gallery: each {rule} ({where})"
    ]
