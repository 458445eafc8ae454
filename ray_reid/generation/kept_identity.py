"""Do generated images keep their identity? Models say that have seen neither them nor it.

Every generated image searches the real training images of many identities, its own among them; it
has kept its identity if the most similar one shows it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_reid import schema, storage
from ray_reid.generation import agreement
from ray_reid.generation.sheets import Selection
from ray_reid.generation.teaching import folders_in, read_features
from ray_reid.places import Place
from ray_reid.recipe.base import Frozen
from ray_reid.runtime.bars import bar
from ray_reid.runtime.sections import Table, number

BATCH = 128
WHAT = {
    "kept": "generated, kept",
    "dropped": "generated, dropped",
    "real": "real, itself left out",
}
"""What is searched, and what the report calls it."""


class KeptIdentity(Frozen):
    """How often the most similar real image shows the identity; shares from 0 to 1."""

    what: str
    images: int
    rank_1: float
    across_images: int
    """Images whose identity has real ones from another camera than their source's."""
    across: float | None
    """The same for these, with the images of that camera and identity left out."""
    judges: int
    gallery: int
    """Real images that are searched, on average over the judges."""


@dataclass
class _Tally:
    hits: list[bool] = field(default_factory=list)
    across: list[bool] = field(default_factory=list)


class _Gallery:
    """The real images that one judge may be asked about."""

    def __init__(self, folder: Place) -> None:
        rows, self.embedding = read_features(folder)
        self.folder = folder
        ids, self.names, self.cameras = (
            rows[column].to_pylist()
            for column in (schema.OBSERVATION_ID, schema.IDENTITY, schema.CAMERA)
        )
        self.owner, self.taken_by = (
            np.array(column, object) for column in (self.names, self.cameras)
        )
        self.camera_of: dict[str | None, str | None] = dict(zip(ids, self.cameras, strict=True))


def measure(judges: Place, made: Selection, most: int) -> tuple[KeptIdentity, ...]:
    """Search generated and real images with every judge.

    Args:
        judges: Result of the job `judges`.
        made: All generated images.
        most: Of each kind, evenly spaced in the order of their ids, which are hashes.

    Returns:
        By kind; empty if there are no judges, or nothing for them to judge.
    """
    galleries = [_Gallery(folder) for folder in folders_in(judges)]
    rows = agreement.measured(made.rows)
    passed = rows[schema.DROP_REASON].is_null()
    kinds = {"kept": rows.filter(passed), "dropped": rows.filter(pc.invert(passed))}
    queries = {
        what: found.take(storage.evenly_spaced(found.num_rows, most)).to_pylist()
        for what, found in kinds.items()
    }
    tallies = {what: _Tally() for what in WHAT}
    total = sum(map(len, queries.values()))
    with bar("review, identity kept", "image", total) as line:
        for gallery in galleries:
            own = set(gallery.names)
            for what, rows_of in queries.items():
                asked = [row for row in rows_of if row[schema.IDENTITY] in own]
                if asked:
                    _judge_generated(gallery, asked, made.table, tallies[what])
                    line.update(len(asked))
            _judge_real(gallery, max(1, most // len(galleries)), tallies["real"])
    size = round(float(np.mean([len(one.embedding) for one in galleries]))) if galleries else 0
    return tuple(
        _told(what, tally, len(galleries), size) for what, tally in tallies.items() if tally.hits
    )


def table(found: Sequence[KeptIdentity]) -> Table | None:
    """Lay it out for the report."""
    if not found:
        return None
    rows = tuple(
        (WHAT[one.what], str(one.images), number(100 * one.rank_1, 1) + " %", _across(one))
        for one in found
    )
    note = (
        f"Rank-1 of a search among {found[0].gallery} real training images, by {found[0].judges} "
        "models that have seen none of these identities. Across cameras: without the images of the "
        "same identity that the camera of the source took."
    )
    header = ("images searched for", "images", "rank-1", "across cameras")
    return Table("Identity kept", header, rows, note, measured=True)


def _across(one: KeptIdentity) -> str:
    return "-" if one.across is None else f"{100 * one.across:.1f} %"


def _judge_generated(
    gallery: _Gallery, rows: Sequence[Mapping[str, str]], table: Place, tally: _Tally
) -> None:
    from ray_reid.models import package

    model = package.load(gallery.folder)
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        keys = [row[schema.OBSERVATION_ID] for row in some]
        encoded = storage.images_by_id(table, keys, kept_only=False)
        vectors = model.embed([encoded[key] for key in keys])
        names = [row[schema.IDENTITY] for row in some]
        cameras = [gallery.camera_of.get(row[schema.PARENT]) for row in some]
        _search(gallery, vectors, names, cameras, tally)


def _judge_real(gallery: _Gallery, most: int, tally: _Tally) -> None:
    rows = storage.evenly_spaced(len(gallery.embedding), most)
    counts = Counter(gallery.names)
    several = [row for row in rows.tolist() if counts[gallery.names[row]] > 1]
    for start in range(0, len(several), BATCH):
        some = several[start : start + BATCH]
        _search(
            gallery,
            gallery.embedding[some],
            [gallery.names[row] for row in some],
            [gallery.cameras[row] for row in some],
            tally,
            some,
        )


def _search(
    gallery: _Gallery,
    vectors: NDArray[np.float32],
    names: Sequence[str],
    cameras: Sequence[str | None],
    tally: _Tally,
    themselves: Sequence[int] | None = None,
) -> None:
    """Note whether the most similar image shows the identity, and so without the same camera."""
    similarity = vectors @ gallery.embedding.T
    if themselves is not None:
        similarity[np.arange(len(themselves)), list(themselves)] = -np.inf
    for row, name, camera in zip(similarity, names, cameras, strict=True):
        own = gallery.owner == name
        tally.hits.append(bool(own[row.argmax()]))
        junk = own & (gallery.taken_by == camera) if camera is not None else np.zeros_like(own)
        if camera is not None and (own & ~junk).any():
            tally.across.append(bool(own[np.where(junk, -np.inf, row).argmax()]))


def _told(what: str, tally: _Tally, judges: int, gallery: int) -> KeptIdentity:
    return KeptIdentity(
        what=what,
        images=len(tally.hits),
        rank_1=float(np.mean(tally.hits)),
        across_images=len(tally.across),
        across=float(np.mean(tally.across)) if tally.across else None,
        judges=judges,
        gallery=gallery,
    )
