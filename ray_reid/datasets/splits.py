"""Splits of a folder that comes without any: held-out identities, and which images are queries."""

from collections.abc import Sequence
from pathlib import Path

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.reading import Row

TEST = "test"


def held_out(identities: set[str], fraction: float, seed: int) -> set[str]:
    """Choose the test identities; adding identities moves no other to another side.

    At least two identities stay on each side.

    Raises:
        ValueError: If there are fewer than four.
    """
    if len(identities) < 4:
        raise ValueError(
            f"{len(identities)} identities cannot be split into train and test; it takes at "
            "least 4 (2 each)"
        )
    order = sorted(identities, key=lambda name: (reading.share(seed, name), name))
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
            row[schema.SPLIT] = "query" if any(row is query for query in queries) else "gallery"
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
    queries = list(candidates)
    for row in reversed(candidates):
        others = [image for image in images if all(image is not query for query in queries)]
        gallery = [{**image, schema.SPLIT: "gallery"} for image in others]
        if reading.unanswerable([*gallery, {**row, schema.SPLIT: "query"}]):
            queries = [query for query in queries if query is not row]
    return queries


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
