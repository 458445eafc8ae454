"""A gallery opened for search: seeded by `live`, changed through `embedded.writer`, read by all.

`embedded/` keeps it on disk. Similarity is the inner product of unit-norm embeddings,
the cosine: higher is nearer.
"""

import importlib.util
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_reid import schema
from ray_reid.gallery.embedded import ann, nearest
from ray_reid.gallery.embedded.contents import View
from ray_reid.gallery.embedded.segment import Vectors
from ray_reid.gallery.embedded.store import GalleryManifest, Reader
from ray_reid.gallery.embedded.where import Where
from ray_reid.ranking.open_set import Decision

log = logging.getLogger(__name__)

EVERYTHING = Where()
# A compaction may replace the index between two steps of opening it.
_ATTEMPTS = 10


# Not frozen: that takes three times as long, and a batch makes ten thousand.
@dataclass(slots=True)
class Hit:
    """One gallery image found for a query; null columns of the observation are None."""

    rank: int
    """From 1, the nearest."""
    similarity: float
    """Cosine in [-1, 1]; higher is nearer."""
    # From here on as `HIT_COLUMNS`.
    observation_id: str
    identity: str | None
    camera: str | None
    view: str | None
    time: float | None
    source: str
    licence: str | None
    split: str
    path: str | None = None
    """Of the file that it was read from, relative to the root of its source."""
    decision: Decision | None = None
    """Whether it shows what the query shows; None if the model has no thresholds for that."""


class Gallery:
    """A gallery opened for search; any number of threads may."""

    def __init__(self, source: Reader) -> None:
        """Search what a reader sees, or a writer: its writes are found at once.

        Raises:
            ValueError: If faiss is missing or the approximate index is damaged.
        """
        check_faiss()
        self.source = source
        self.dimension, self.model = source.dimension, source.model
        self._guard = threading.Lock()
        self._opened: tuple[int, str | None] | None = None
        self._approximate: ann.Search | None = None
        self._state()

    @classmethod
    def open(cls, path: Path) -> "Gallery":
        """Open a gallery for reading, `RUN/gallery` for example.

        Raises:
            ValueError: If there is none, or a file of it is damaged.
        """
        return cls(Reader(path))

    def __len__(self) -> int:
        return len(self.source)

    def refresh(self) -> None:
        """See what others have written since; searches under way go on with what they saw."""
        self.source.refresh()
        self._state()

    def search(self, embeddings: Vectors, k: int, where: Where = EVERYTHING) -> list[list[Hit]]:
        """Find the k nearest gallery images of each of N queries.

        Args:
            embeddings: (N, D) unit-norm.
            k: Hits of each query; more than the gallery holds gives all of it.
            where: Which images may be found.

        Returns:
            N lists of hits, nearest first.

        Raises:
            ValueError: If k is below 1, or the embeddings are not finite and (N, D).
        """
        view, (similarity, number) = self.find(embeddings, k, where)
        there = number >= 0
        # All at once: the rows of one query after another take as long as their search.
        rows = iter(view.rows(number[there]))
        # Rounding takes the cosine of equal vectors a little beyond 1.
        return [
            [
                Hit(rank, value, *next(rows))
                for rank, value in enumerate(values[found].tolist(), start=1)
            ]
            for values, found in zip(similarity.clip(-1, 1), there, strict=True)
        ]

    def image(self, observation_id: str) -> bytes:
        """The encoded image of a gallery row.

        Raises:
            ValueError: If the gallery has no such observation, or keeps no image of it.
        """
        view, number = self.source.find(observation_id)
        if number is None:
            raise ValueError(f"the gallery has no observation {observation_id[:64]!r}")
        encoded: bytes | None = view.full(number)[schema.IMAGE]
        if encoded is None:
            raise ValueError(f"the gallery keeps no image of observation {observation_id[:64]!r}")
        return encoded

    def cameras(self) -> set[str]:
        """The cameras of its images, as `source:camera`."""
        pairs = self.source.view().pairs((schema.SOURCE, schema.CAMERA))
        return {f"{source}:{camera}" for source, camera in pairs if camera is not None}

    def pictured(self) -> Mapping[str, Any] | None:
        """The first observation, if the gallery keeps an image of it, or None."""
        view = self.source.view()
        number = view.first()
        row = None if number is None else view.full(number)
        return None if row is None or row[schema.IMAGE] is None else row

    def find(
        self, embeddings: Vectors, k: int, where: Where = EVERYTHING
    ) -> tuple[View, nearest.Found]:
        """Find as `search` does, but give row numbers and what they number."""
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension:
            raise ValueError(
                f"query embeddings have shape {embeddings.shape}; the gallery needs "
                f"(N, {self.dimension}): was it indexed with another model?"
            )
        if not np.isfinite(embeddings).all():
            raise ValueError("query embeddings hold values that are not finite")
        queries = np.ascontiguousarray(embeddings, dtype=np.float32)
        view, approximate = self._state()
        whole = not where and not view.num_dead
        stored, added = view.masks(where)
        find = nearest.search if approximate is None else approximate.search
        found = find(view.segment.vectors, queries, k, None if whole else stored)
        if added.any():
            similarity, number = nearest.search(view.vectors, queries, k, added)
            found = nearest.merged(found, (similarity, number + len(stored)), k)
        return view, found

    def _state(self) -> tuple[View, ann.Search | None]:
        """The gallery as it is now, and the index that belongs to its segment."""
        with self._guard:
            for attempt in range(_ATTEMPTS):
                manifest, view = self.source.state()
                wanted = manifest.generation, manifest.search
                if wanted == self._opened:
                    break
                try:
                    self._approximate = _open_index(self.source.path, manifest, view)
                    self._opened = wanted
                    break
                except FileNotFoundError as error:
                    if (
                        attempt + 1 == _ATTEMPTS
                        or GalleryManifest.read(self.source.path) == manifest
                    ):
                        raise ValueError(
                            f"gallery {str(self.source.path)!r} lacks the file "
                            f"{manifest.search!r}; make it again with Writer.rebuild"
                        ) from error
                    self.source.refresh()
            return view, self._approximate


def _open_index(path: Path, manifest: GalleryManifest, view: View) -> ann.Search | None:
    """What searches the segment: None for `nearest`, which needs no index."""
    settings = ann.checked(manifest.index)
    vectors = view.segment.vectors
    if settings.kind != "hnsw" and len(vectors) and ann.num_gpus():
        return ann.OnGpus(vectors)
    if manifest.search is None:
        return None
    return ann.Approximate.read(path / manifest.search, settings, len(vectors))


def check_faiss() -> None:
    """Look for faiss before anything runs that ends in an index.

    Raises:
        ValueError: If it is not installed.
    """
    if importlib.util.find_spec("faiss") is None:
        raise ValueError(
            "faiss is not installed; add one of the extras: pip install '.[faiss-cpu]' or, for "
            "CUDA, '.[faiss-gpu]'"
        )
