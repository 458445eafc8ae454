"""A gallery to search: made by the index job, changed through `embedded.writer`, read by all.

`embedded/` keeps it on disk. Similarity is the inner product of unit-norm embeddings,
the cosine: higher is nearer.
"""

import importlib.util
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ray_reid import images, schema
from ray_reid.gallery.embedded import ann, nearest
from ray_reid.gallery.embedded.contents import View
from ray_reid.gallery.embedded.segment import Vectors
from ray_reid.gallery.embedded.store import GalleryManifest, Reader
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.ranking.open_set import Decision, Thresholds
from ray_reid.runtime.results import RunState

log = logging.getLogger(__name__)

EVERYTHING = Where()
Names = Sequence[str | None]
# Another precision or device moves the similarity of an image to itself far less than this.
SELF_SIMILARITY = 0.95
# A compaction may replace the index between two steps of opening it.
_ATTEMPTS = 10


class Embedder(Protocol):
    """What a search needs of a model package."""

    @property
    def thresholds(self) -> Thresholds | None:
        """Of match and possible; None if they were never calibrated."""

    def embed(
        self, images: Sequence[bytes], /, *, sides: tuple[Names, Names] | None = None
    ) -> NDArray[np.float32]:
        """Embed N encoded images as (N, D) unit-norm float32; `sides` are cameras and views."""


@dataclass(frozen=True)
class Hit:
    """One gallery image found for a query; null columns of the observation are None."""

    rank: int
    """From 1, the nearest."""
    observation_id: str
    identity: str | None
    camera: str | None
    view: str | None
    time: float | None
    source: str
    licence: str | None
    split: str
    similarity: float
    """Cosine in [-1, 1]; higher is nearer."""
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
        """Open a gallery for reading, `RUN/index` for example.

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
                Hit(rank=rank, similarity=value, **next(rows))
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

    def pictured(self) -> Mapping[str, Any] | None:
        """An observation whose image the gallery keeps, or None."""
        view = self.source.view()
        rows = (view.full(number) for number in view.numbers(EVERYTHING)[:1])
        return next((row for row in rows if row[schema.IMAGE] is not None), None)

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


@dataclass(frozen=True)
class Searcher:
    """A model and a gallery that it embedded: an image in, hits out."""

    model: Embedder
    gallery: Gallery
    name: str
    """Recipe and key of the training that made the model, `baseline/1f0c...`."""

    @classmethod
    def open(cls, run: Path, device: str | None = None) -> "Searcher":
        """Load the model, onto `device` or the best there is, and the gallery of a run.

        Raises:
            ValueError: If the run has no index, or its index is of an older model.
        """
        state = check_current(run)
        # torch comes with it, which a run that cannot be searched need not wait for.
        from ray_reid.models import package

        model = package.load(run, device)
        name = f"{model.recipe.name}/{state.keys['train']}"
        return cls(model, Gallery.open(state.folder("index")), name)

    @property
    def version(self) -> str:
        """What galleries call the model: the key of its training."""
        return self.name.rpartition("/")[2]

    def search(
        self, encoded: bytes, k: int, where: Where = EVERYTHING, camera: str | None = None
    ) -> list[Hit]:
        """Find the k gallery images nearest to one encoded image, nearest first, and decide.

        Args:
            encoded: The query.
            k: Hits.
            where: Which images may be found.
            camera: That took the query, as `source:camera`; between some cameras the thresholds
                are their own, and some networks know the camera.

        Raises:
            ValueError: If the bytes are not an image, or k is below 1.
        """
        return self.decided(self.gallery.search(self.embed([encoded], camera), k, where)[0], camera)

    def embed(self, encoded: Sequence[bytes], camera: str | None = None) -> NDArray[np.float32]:
        """(N, D) embeddings of queries that a camera took.

        Raises:
            ValueError: If the bytes are not an image.
        """
        names = [camera] * len(encoded)
        return self.model.embed(encoded, sides=(names, [None] * len(encoded)))

    def decided(self, hits: list[Hit], camera: str | None = None) -> list[Hit]:
        """Say of hits of a query what their similarities mean; see `search`."""
        if self.model.thresholds is None:
            return hits
        decide = self.model.thresholds.decide
        cameras = schema.qualified_cameras(
            [hit.source for hit in hits], [hit.camera for hit in hits]
        )
        return [
            replace(hit, decision=decide(hit.similarity, camera, other))
            for hit, other in zip(hits, cameras, strict=True)
        ]

    def enrol(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add observations with their images to a gallery that this process writes.

        Raises:
            ValueError: If the gallery is open for reading only, is of another model, or a row
                lacks its image or breaks another rule; nothing is changed then.
        """
        source = self.gallery.source
        if not isinstance(source, Writer):
            raise ValueError(
                f"gallery {str(source.path)!r} is open for reading; open it with Writer to enrol"
            )
        if not all(row.get(schema.IMAGE) for row in rows):
            raise ValueError("column 'image' is required to embed an observation; a row lacks it")
        if rows:
            source.enrol(rows, self._embed(rows), self.version)

    def _embed(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Embeddings of observations, as the embed job makes them."""
        sources = [row.get(schema.SOURCE, "") for row in rows]
        cameras = schema.qualified_cameras(sources, [row.get(schema.CAMERA) for row in rows])
        views = [row.get(schema.VIEW) for row in rows]
        return self.model.embed([row[schema.IMAGE] for row in rows], sides=(cameras, views))

    def warm_up(self) -> None:
        """Search with a gallery image, which must find itself; without images there is none.

        Raises:
            ValueError: If it does not: the index was made with another model.
        """
        row = self.gallery.pictured()
        if row is None:
            return
        first = self.gallery.search(self._embed([row]), 1)[0][0]
        if first.similarity < SELF_SIMILARITY:
            raise ValueError(
                f"gallery image {row[schema.OBSERVATION_ID]} has similarity "
                f"{first.similarity:.3f} to its own nearest, not 1: the index was made with "
                f"another model than {self.name!r}"
            )


def check_current(run: Path) -> RunState:
    """Refuse a run that cannot be searched; returns what it has.

    Raises:
        ValueError: If one of the jobs that a search needs has no current result.
    """
    state = RunState.read(run)
    for job in ("train", "evaluate", "index"):
        state.folder(job)
    return state


def search_image(run: Path, image: Path, k: int, camera: str | None = None) -> list[Hit]:
    """Search the gallery of a run with an image file, nearest first; see `Searcher.search`.

    Raises:
        ValueError: If the file is not an image, the camera has no such name, or the run has no
            current index.
    """
    encoded = read_query(image, camera)
    return Searcher.open(run).search(encoded, k, camera=camera)


def read_query(image: Path, camera: str | None = None) -> bytes:
    """The bytes of an image file, before a model is loaded, which takes seconds.

    Raises:
        ValueError: If the file is not an image, or the camera has no such name.
    """
    if camera is not None and not all(camera.partition(":")):
        raise ValueError(f"camera {camera!r} must be named source:camera, such as veri776:c001")
    try:
        encoded = image.read_bytes()
        images.decode(encoded)
    except OSError as error:
        raise ValueError(f"cannot read {str(image)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{str(image)!r}: {error}") from error
    return encoded


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
