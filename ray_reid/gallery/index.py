"""The index job: embeddings to a gallery that can be searched and changed."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from ray_reid import places, schema, storage
from ray_reid.gallery.embedded import store
from ray_reid.gallery.embedded.segment import COLUMNS, ROWS, TABLE, Vectors
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.places import Place
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.results import Manifest

_BLOCK = 65536


class IndexFacts(Facts):
    """What the index job says."""

    splits: tuple[str, ...] = ()
    dimension: int = 0
    kind: str = ""
    trained_by: str = ""
    """Key of the training whose model made the embeddings."""


def index_job(work: Work) -> IndexFacts:
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
    model = Manifest.read(work.inputs["embed"]).inputs["train"]
    # A killed attempt may have left a part, or all of it.
    for name in (store.CURRENT, *store.FOLDERS):
        places.remove(work.out / name)
    settings = work.recipe.index.model_dump(mode="json")
    blocks = _blocks(table, vectors)
    with places.written(work.out) as folder:
        Writer.create(folder, model, vectors.shape[1], blocks, settings).close()
    return IndexFacts(
        metrics={"gallery_images": len(table), **_counts(table)},
        splits=tuple(splits),
        dimension=vectors.shape[1],
        kind=work.recipe.index.kind,
        trained_by=model,
        fingerprint=storage.fingerprint(work.out / TABLE, f"index/{TABLE}"),
    )


def _observations(path: Place, embedded: pa.Table) -> pa.Table:
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
    return table.cast(ROWS)


def _blocks(table: pa.Table, vectors: Vectors) -> Iterator[tuple[pa.Table, Vectors]]:
    for start in range(0, len(table), _BLOCK):
        yield table.slice(start, _BLOCK), vectors[start : start + _BLOCK]


def _counts(table: pa.Table) -> dict[str, int]:
    names = {"gallery_identities": schema.IDENTITY, "gallery_cameras": schema.CAMERA}
    return {name: pc.count_distinct(table[column]).as_py() for name, column in names.items()}


JOB = Job(
    "index",
    index_job,
    needs=("ingest", "embed"),
    sections=("index",),
    uses_ray=False,
    facts=IndexFacts,
)
