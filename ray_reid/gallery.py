"""A durable gallery: what can be found, its exact faiss index, and the search over both.

The index and the table hold the same rows in the same order, that of `observation_id`, so a
position in one is a row of the other. Similarity is the inner product of unit-norm embeddings,
the cosine: higher is nearer.
"""

import importlib.util
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray
from tqdm import tqdm

from ray_reid import images, schema, storage
from ray_reid.run import Work, read_manifest

log = logging.getLogger(__name__)

INDEX_FILE = "gallery.faiss"
TABLE = "gallery"
HIT_COLUMNS = (
    schema.OBSERVATION_ID,
    schema.IDENTITY,
    schema.CAMERA,
    schema.VIEW,
    schema.TIME,
    schema.SOURCE,
    schema.LICENCE,
    schema.SPLIT,
)
COLUMNS = (*HIT_COLUMNS, schema.CLOTHES, schema.IMAGE)
# faiss multiplies one query after another below this many; from 20 on BLAS is 8 times faster.
BLAS_QUERIES = 20
ADD_ROWS = 65536
# Another precision or device moves the similarity of an image to itself far less than this.
SELF_SIMILARITY = 0.95


class Embedder(Protocol):
    """What a search needs of a model package."""

    def embed(self, images: Sequence[bytes], /) -> NDArray[np.float32]:
        """Embed N encoded images as (N, D) unit-norm float32."""


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


def index_job(work: Work) -> Mapping[str, Any]:
    """Index the embeddings of `index.splits`, junk left out, beside the images they stand for.

    Raises:
        ValueError: If no embedding is left to index, or one has no kept observation.
    """
    splits = work.recipe.index.splits
    embedded = storage.read(
        work.inputs["embed"] / "embeddings",
        [schema.OBSERVATION_ID, schema.SPLIT, schema.ROLE, schema.EMBEDDING],
    )
    wanted = pc.and_(
        pc.is_in(embedded[schema.SPLIT], pa.array(splits)),
        pc.not_equal(embedded[schema.ROLE], "junk"),
    )
    embedded = embedded.filter(wanted)
    if not len(embedded):
        raise ValueError(
            f"no embedding to index in index.splits {list(splits)}; add the other of query and "
            "gallery"
        )
    vectors = storage.embeddings(embedded, schema.EMBEDDING)
    table = _observations(work.inputs["ingest"] / "observations", embedded)
    # A killed attempt may have left half a table, and tables are never overwritten.
    shutil.rmtree(work.out / TABLE, ignore_errors=True)
    storage.write(work.out / TABLE, table)
    _write_index(vectors, work.out / INDEX_FILE)
    return {
        "metrics": {"gallery_images": len(table), **_counts(table)},
        "splits": list(splits),
        "dimension": vectors.shape[1],
        "fingerprint": asdict(storage.fingerprint(work.out / TABLE, f"index/{TABLE}")),
    }


class Gallery:
    """The index and the table of one published index job, opened for search."""

    def __init__(self, index: Any, table: Path) -> None:
        """Take an inner-product faiss index and the table whose rows it numbers.

        Raises:
            ValueError: If the gallery is empty, or index and table differ in size.
        """
        self._rows = storage.read(table, HIT_COLUMNS)
        self._table = storage.dataset(table)
        self.dimension = int(index.d)
        if index.ntotal != len(self._rows):
            raise ValueError(
                f"index of {str(table)!r} has {index.ntotal} embeddings but its table has "
                f"{len(self._rows)} rows; make it again with the index job"
            )
        if not index.ntotal:
            raise ValueError(f"gallery {str(table)!r} is empty; choose other index.splits")
        self._index = _on_gpus(index)

    @classmethod
    def open(cls, path: Path) -> "Gallery":
        """Open what the index job published, `RUN/index`.

        Raises:
            ValueError: If the index or its table is missing, unreadable, empty or unlike.
        """
        import faiss

        file, table = path / INDEX_FILE, path / TABLE
        if not file.is_file() or not table.is_dir():
            raise ValueError(
                f"{str(path)!r} is not an index: it needs {INDEX_FILE!r} and the table {TABLE!r}"
            )
        faiss.cvar.distance_compute_blas_threshold = BLAS_QUERIES
        try:
            index = faiss.read_index(str(file))
        except RuntimeError as error:
            raise ValueError(f"{str(file)!r} is not a whole faiss index") from error
        return cls(index, table)

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, embeddings: NDArray[np.float32], k: int) -> list[list[Hit]]:
        """Find the k nearest gallery images of each of N queries.

        Args:
            embeddings: (N, D) unit-norm.
            k: Hits of each query; more than the gallery holds gives all of it.

        Returns:
            N lists of hits, nearest first.

        Raises:
            ValueError: If k is below 1, or the embeddings are not finite and (N, D).
        """
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
        similarity, position = self._index.search(queries, min(k, len(self)))
        # Rounding takes the cosine of equal vectors a little beyond 1.
        pairs = zip(similarity.clip(-1, 1), position, strict=True)
        return [self._hits(*found) for found in pairs]

    def image(self, observation_id: str) -> bytes:
        """The encoded image of a gallery row.

        Raises:
            ValueError: If the gallery has no such observation.
        """
        # Rows lie sorted by id, so Parquet's statistics leave one row group to read.
        found = self._table.to_table(
            columns=[schema.IMAGE], filter=pads.field(schema.OBSERVATION_ID) == observation_id
        )
        if not len(found):
            raise ValueError(f"the gallery has no observation {observation_id[:64]!r}")
        encoded: bytes = found[schema.IMAGE][0].as_py()
        return encoded

    def observation_id(self, row: int) -> str:
        """The id of a row of the index."""
        return str(self._rows[schema.OBSERVATION_ID][row].as_py())

    def _hits(self, similarity: NDArray[np.float32], position: NDArray[np.int64]) -> list[Hit]:
        rows = self._rows.take(position).to_pylist()
        ranked = enumerate(zip(rows, similarity, strict=True), start=1)
        return [Hit(rank=rank, similarity=float(value), **row) for rank, (row, value) in ranked]


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
        check_current(run)
        # torch comes with it, which a run that cannot be searched need not wait for.
        from ray_reid import package

        model = package.load(run, device)
        name = f"{model.recipe.name}/{read_manifest(run, 'train').key}"
        return cls(model, Gallery.open(run / "index"), name)

    def search(self, encoded: bytes, k: int) -> list[Hit]:
        """Find the k gallery images nearest to one encoded image, nearest first.

        Raises:
            ValueError: If the bytes are not an image, or k is below 1.
        """
        return self.gallery.search(self.model.embed([encoded]), k)[0]

    def warm_up(self) -> None:
        """Search with a gallery image, which must find itself.

        Raises:
            ValueError: If it does not: the index was made with another model.
        """
        wanted = self.gallery.observation_id(0)
        nearest = self.search(self.gallery.image(wanted), 1)[0]
        if nearest.similarity < SELF_SIMILARITY:
            raise ValueError(
                f"gallery image {wanted} has similarity {nearest.similarity:.3f} to its own "
                f"nearest, not 1: the index was made with another model than {self.name!r}"
            )


def check_current(run: Path) -> None:
    """Refuse a run whose index was not made by the model that it has now.

    Raises:
        ValueError: If one of these jobs is not published, or is older than its input.
    """
    for job in ("index", "embed", "evaluate"):
        inputs = read_manifest(run, job).inputs
        for needed in sorted(inputs.keys() - {"outside"}):
            if read_manifest(run, needed).key != inputs[needed]:
                raise ValueError(
                    f"job {job!r} of run {str(run)!r} was made from an older {needed!r}; "
                    f"run its recipe again"
                )


def search_image(run: Path, image: Path, k: int) -> list[Hit]:
    """Search the gallery of a run with an image file, nearest first.

    Raises:
        ValueError: If the file is not an image, or the run has no current index.
    """
    try:
        encoded = image.read_bytes()
        # Before the model, which takes seconds to load.
        images.decode(encoded)
    except OSError as error:
        raise ValueError(f"cannot read {str(image)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{str(image)!r}: {error}") from error
    return Searcher.open(run).search(encoded, k)


def _observations(path: Path, embedded: pa.Table) -> pa.Table:
    """The observations of the embedded rows, in the same order."""
    wanted = embedded[schema.OBSERVATION_ID].combine_chunks()
    found = [
        batch.filter(pc.is_in(batch[schema.OBSERVATION_ID], wanted))
        for batch in storage.scan(path, COLUMNS)
    ]
    kind = pa.schema([storage.dataset(path).schema.field(name) for name in COLUMNS])
    table = pa.Table.from_batches(found, kind).sort_by(schema.OBSERVATION_ID)
    if not table[schema.OBSERVATION_ID].combine_chunks().equals(wanted):
        raise ValueError(
            f"{len(wanted)} embeddings but {len(table)} kept observations of the same ids in "
            f"{str(path)!r}; ids must be unique and embedded once"
        )
    return table


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


def _write_index(vectors: NDArray[np.float32], file: Path) -> None:
    import faiss

    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    index = faiss.IndexFlatIP(vectors.shape[1])
    starts = range(0, len(vectors), ADD_ROWS)
    for start in tqdm(starts, desc="index", unit="block", dynamic_ncols=True):
        index.add(np.ascontiguousarray(vectors[start : start + ADD_ROWS]))
    faiss.write_index(index, str(file))


def _on_gpus(index: Any) -> Any:
    """Copy an index to every visible GPU, when this faiss can use one."""
    import faiss

    num_gpus = getattr(faiss, "get_num_gpus", lambda: 0)()
    return faiss.index_cpu_to_all_gpus(index) if num_gpus else index


def _counts(table: pa.Table) -> dict[str, int]:
    names = {"gallery_identities": schema.IDENTITY, "gallery_cameras": schema.CAMERA}
    return {name: pc.count_distinct(table[column]).as_py() for name, column in names.items()}
