"""A model and the live gallery of a run: images in, hits or new rows out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ray_reid import images, places, schema
from ray_reid.gallery import live
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.gallery.gallery import EVERYTHING, Gallery, Hit
from ray_reid.gallery.live import Seeded
from ray_reid.places import Place
from ray_reid.ranking.open_set import Thresholds
from ray_reid.runtime.results import RunState

log = logging.getLogger(__name__)

Names = Sequence[str | None]
# Another precision or device moves the similarity of an image to itself far less than this.
SELF_SIMILARITY = 0.95
NUM_NAMED = 20


class Embedder(Protocol):
    """What a search needs of a model package."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that the network knows, as `source:camera`."""

    @property
    def thresholds(self) -> Thresholds | None:
        """Of match and possible; None if they were never calibrated."""

    def embed(
        self, images: Sequence[bytes], /, *, sides: tuple[Names, Names] | None = None
    ) -> NDArray[np.float32]:
        """Embed N encoded images as (N, D) unit-norm float32; `sides` are cameras and views."""


class UnknownCameraError(ValueError):
    """The camera of a query is one that neither the gallery nor the model knows."""


@dataclass(frozen=True)
class Searcher:
    """A model and a gallery that it embedded: an image in, hits out."""

    model: Embedder
    gallery: Gallery
    name: str
    """Recipe and key of the training that made the model, `baseline/1f0c...`."""
    _cameras: set[str] = field(default_factory=set, repr=False, compare=False)
    """That gallery and model were seen to know."""

    @classmethod
    def open(cls, run: Place | RunState, device: str | None = None) -> "Searcher":
        """Load the model, onto `device` or the best there is, and the gallery of a run.

        Raises:
            ValueError: If the run has no index or no gallery, or one of these is of an older model.
        """
        state = check_current(run)
        gallery = Gallery.open(live.current(state))
        return cls(_model(state, device), gallery, model_name(state))

    @classmethod
    @contextmanager
    def writing(cls, run: Place, device: str | None = None) -> Iterator["Searcher"]:
        """Load the model of a run and hold its gallery for writing.

        Raises:
            ValueError: As `open`, or if another process writes the gallery.
        """
        state = check_current(run)
        with Writer(live.current(state)) as writer:
            yield cls(_model(state, device), Gallery(writer), model_name(state))

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
            ValueError: If the bytes are not an image, k is below 1, or the camera is unknown; see
                `check_camera`.
        """
        self.check_camera(camera)
        return self.decided(self.gallery.search(self.embed([encoded], camera), k, where)[0], camera)

    def check_camera(self, camera: str | None) -> None:
        """Refuse the camera of a query that neither the gallery nor the network knows.

        Raises:
            UnknownCameraError: Names those that they know.
        """
        if camera is None or camera in self._cameras:
            return
        # A gallery may be large, and one that is served grows.
        pairs = () if self.model.thresholds is None else self.model.thresholds.cameras
        self._cameras.update(self.gallery.cameras(), self.model.cameras, *pairs)
        if camera not in self._cameras:
            names = sorted(self._cameras)
            more = " ..." if len(names) > NUM_NAMED else ""
            raise UnknownCameraError(
                f"camera {camera!r} is on no image of the gallery, and the model does not know it; "
                f"they know {', '.join(names[:NUM_NAMED]) or 'none'}{more}; leave it out for a new "
                "camera"
            )

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
            source.enrol(rows, embedded(self.model, rows), self.version)

    def warm_up(self) -> None:
        """Search with a gallery image, which must find itself; without images there is none.

        Raises:
            ValueError: If it does not: the index was made with another model.
        """
        row = self.gallery.pictured()
        if row is None:
            return
        first = self.gallery.search(embedded(self.model, [row]), 1)[0][0]
        if first.similarity < SELF_SIMILARITY:
            raise ValueError(
                f"gallery image {row[schema.OBSERVATION_ID]} has similarity "
                f"{first.similarity:.3f} to its own nearest, not 1: the index was made with "
                f"another model than {self.name!r}"
            )


def embedded(model: Embedder, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """(N, D) embeddings of observations with their images, as the embed job makes them."""
    sources = [row.get(schema.SOURCE, "") for row in rows]
    cameras = schema.qualified_cameras(sources, [row.get(schema.CAMERA) for row in rows])
    views = [row.get(schema.VIEW) for row in rows]
    return model.embed([row[schema.IMAGE] for row in rows], sides=(cameras, views))


def model_name(run: RunState) -> str:
    """Recipe and key of the training that made the model of a run."""
    return f"{run.recipe.name}/{run.folder('train').name}"


def _model(run: RunState, device: str | None = None) -> Embedder:
    # torch comes with it, which a run that cannot be searched need not wait for.
    from ray_reid.models import package

    return package.load(run.folder("evaluate") / "model", device)


def seed(run: Place, drop_unembeddable: bool = False) -> Seeded:
    """Bring the live gallery of a run up to its index; the model is loaded only if it is needed.

    Raises:
        ValueError: As `live.seed`, or if the run has no current index.
    """
    state = RunState.read(run)
    model = cache(lambda: _model(state))
    index = places.fetched(state.folder("index"))
    path = live.place(state)
    done = live.seed(
        index, index.name, path, lambda rows: embedded(model(), rows), drop_unembeddable
    )
    if done.is_new:
        log.info("gallery: %d images, %d of them enrolled or changed here", done.images, done.kept)
    return done


def check_current(run: Place | RunState) -> RunState:
    """Refuse a run that cannot be searched; returns what it has.

    Raises:
        ValueError: If one of the jobs that a search needs has no current result.
    """
    state = run if isinstance(run, RunState) else RunState.read(run)
    for job in ("train", "evaluate", "index"):
        state.folder(job)
    return state


def search_image(run: Place, image: Path, k: int, camera: str | None = None) -> list[Hit]:
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
