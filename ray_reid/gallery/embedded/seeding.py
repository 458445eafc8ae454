"""What of a gallery outlives the index that it was seeded from: what people did to it."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_reid import images, schema
from ray_reid.gallery.embedded.contents import Row, View
from ray_reid.gallery.embedded.edits import Edits
from ray_reid.gallery.embedded.segment import Block, Vectors, merged
from ray_reid.gallery.embedded.store import Reader
from ray_reid.gallery.embedded.where import Where

Embed = Callable[[Sequence[Row]], Vectors]
"""N rows with their images to (N, D) unit-norm vectors."""
_NAMED = 10


class UnembeddableError(ValueError):
    """Rows that people enrolled have no image from which another model could embed them."""

    def __init__(self, path: Path, ids: Sequence[str]) -> None:
        """Name the gallery and the rows."""
        self.ids = list(ids)
        more = f" and {len(ids) - _NAMED} others" if len(ids) > _NAMED else ""
        super().__init__(
            f"{len(ids)} rows that were enrolled in gallery {str(path)!r} have no image that "
            f"can be read, so that the new model cannot embed them: {self.ids[:_NAMED]}{more}; "
            "enrol them with their images, or leave them out with --drop-unembeddable"
        )


def edits_of(gallery: Reader) -> Edits:
    """What people did to a gallery; all of one that was never seeded."""
    if gallery.manifest.seed is not None:
        return gallery.edits
    view = gallery.view()
    everything = {view.id(number) for number in view.numbers(Where())}
    return Edits(everything, gallery.edits.deleted)


def unembeddable(view: View, ids: Collection[str]) -> list[str]:
    """Those of some rows that have no image that can be read."""
    return [
        row[schema.OBSERVATION_ID]
        for table, _ in _only(view, ids)
        for row in table.select([schema.OBSERVATION_ID, schema.IMAGE]).to_pylist()
        if not _readable(row[schema.IMAGE])
    ]


def blocks(mine: View, theirs: View, edits: Edits, embed: Embed | None) -> Iterator[Block]:
    """The rows of a new generation.

    Args:
        mine: The gallery.
        theirs: What it is seeded from.
        edits: Which rows of the gallery are kept, and which of the others left out.
        embed: Makes the vectors of the kept rows anew; None keeps them.
    """
    own = _only(mine, edits.kept)
    if embed is not None:
        own = ((table, embed(table.to_pylist())) for table, _ in own)
    return merged(own, _without(theirs, edits.kept | edits.deleted))


def _only(view: View, ids: Collection[str]) -> Iterator[Block]:
    wanted = _array(ids)
    for table, vectors in view.blocks() if ids else ():
        kept = np.asarray(pc.is_in(table[schema.OBSERVATION_ID], wanted))
        if kept.any():
            yield table.filter(pa.array(kept)), vectors[kept]


def _without(view: View, ids: Collection[str]) -> Iterator[Block]:
    unwanted = _array(ids)
    for table, vectors in view.blocks():
        kept = ~np.asarray(pc.is_in(table[schema.OBSERVATION_ID], unwanted))
        yield table.filter(pa.array(kept)), vectors[kept]


def _array(ids: Collection[str]) -> pa.Array:
    return pa.array(list(ids), pa.string())


def _readable(encoded: bytes | None) -> bool:
    if not encoded:
        return False
    try:
        images.check(encoded)
    except ValueError:
        return False
    return True
