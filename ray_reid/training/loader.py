"""The loader: which rows are trained on, and any plan of them as batches of decoded images."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ray_reid import images, places, schema, storage
from ray_reid.datasets import rules
from ray_reid.places import Place
from ray_reid.ranking.labels import number_sorted
from ray_reid.recipe.train import Clothes, Train
from ray_reid.training import generated, shares
from ray_reid.training.samplers import Plan

TRAINABLE = storage.TRAINABLE
UNKNOWN = "unlabelled"
"""The one name of a training that knows no identity."""
# Where a row comes from: the number of its table, and its number among the trainable rows there.
TABLE, ROW = "table", "row"
CAMERA_OF = (schema.SOURCE, schema.CAMERA)
DECIDING = (
    schema.OBSERVATION_ID,
    schema.IDENTITY,
    schema.ORIGIN,
    schema.SOURCE,
    schema.PARENT,
    schema.CAMERA,
    schema.VIEW,
    schema.CLOTHES,
)


@dataclass(frozen=True, eq=False)
class TrainingLabels:
    """The rows that are trained on: real ones first, then synthetic, each by `observation_id`."""

    identities: list[str]
    """Names in the order of their labels; of cameras where these are the target."""
    labels: NDArray[np.int64]
    """(N,) label of each row; -1 where a row is clustered before every epoch."""
    synthetic: NDArray[np.bool_]
    """(N,) True where the row's `origin` is synthetic, whatever table it is in."""
    places: NDArray[np.int64]
    """(N, 2) number of the row's table, and the row's number among the trainable ones there."""
    sources: NDArray[np.int64]
    """(N,) number of the row's source, in the order of their names."""
    parents: NDArray[np.int64]
    """(N,) the real row that a row was made from; -1 where there is none among the chosen."""
    cameras: list[str | None]
    """Of the rows; names that are unique over all sources."""
    views: list[str | None]
    clothes: NDArray[np.int64]
    """(N,) number of the clothes that the row shows, each being one identity's own; -1 where they
    are unknown or, by `train.clothes.synthetic`, not learned."""
    wearers: NDArray[np.int64]
    """(C,) label of the identity that wears each of the clothes."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Images and identities by origin."""
        sides = {"real": ~self.synthetic, "synthetic": self.synthetic}
        return {
            name: {
                "images": int(side.sum()),
                "identities": len(np.unique(self.labels[side & (self.labels >= 0)])),
            }
            for name, side in sides.items()
        }


def labels(
    tables: Sequence[str | Place], spec: Train, held_out: Collection[str] = ()
) -> TrainingLabels:
    """Choose the rows that `spec` trains on (`mixing`, shares and draws), and label them.

    Args:
        held_out: Identities to do without, real and generated images alike.

    Raises:
        ValueError: If an origin that `spec.mixing` needs is missing, fewer images are there than
            `spec.synthetic_images`, fewer than two identities are left, or `spec.clothes` has none
            to learn.
    """
    dropped = generated.looks_at_dropped(spec)
    found = _of_sources(_trainable(tables, trainable(spec), dropped), spec.sources, tables)
    if held_out:
        unwanted = pc.is_in(found[schema.IDENTITY], value_set=pa.array(sorted(held_out)))
        found = found.filter(pc.invert(unwanted))
    if spec.target == "camera":
        found = _with_camera(found)
    found = generated.drawn(found, spec)
    synthetic = pc.equal(found[schema.ORIGIN], "synthetic")
    sides = {"real": found.filter(pc.invert(synthetic)), "synthetic": found.filter(synthetic)}
    _check_origins(spec.mixing, {name: side.num_rows for name, side in sides.items()})
    chosen = []
    if spec.mixing != "synthetic":
        chosen.append(shares.of_real(sides["real"], spec))
    if spec.mixing != "real":
        chosen.append(shares.of_synthetic(sides["synthetic"], spec))
    rows = pa.concat_tables(chosen)
    if spec.labels == "clusters":
        rows = _with_labels_or_clustered(rows, spec)
    cameras = schema.qualified_cameras(*(rows[c].to_pylist() for c in CAMERA_OF))
    names, numbers = _numbered(rows, cameras, spec)
    synthetic = pc.equal(rows[schema.ORIGIN], "synthetic").to_numpy()
    # Real rows come first, so a place among them is a row number.
    real = rows[schema.OBSERVATION_ID].slice(0, int(np.count_nonzero(~synthetic)))
    parents = pc.index_in(rows[schema.PARENT], value_set=pc.cast(real, pa.string()))
    _, (sources,) = number_sorted(rows[schema.SOURCE].to_pylist())
    clothes, wearers = _clothes(rows[schema.CLOTHES], numbers, synthetic, spec.clothes)
    return TrainingLabels(
        identities=names,
        labels=numbers,
        synthetic=synthetic,
        places=np.stack([rows[name].to_numpy() for name in (TABLE, ROW)], axis=1),
        sources=sources,
        parents=pc.fill_null(parents, -1).to_numpy().astype(np.int64),
        cameras=cameras,
        views=rows[schema.VIEW].to_pylist(),
        clothes=clothes,
        wearers=wearers,
    )


def trainable(spec: Train) -> pc.Expression:
    """Return which rows of a table could be trained on, and are in its cache."""
    return storage.CLUSTERABLE if spec.labels == "clusters" else TRAINABLE


class Rows(Protocol):
    """Rows that can be trained on, wherever their images are decoded."""

    chosen: TrainingLabels

    def batches(self, plan: Plan, worker: int, start: int = 0) -> Iterable[tuple[Tensor, Tensor]]:
        """A worker's batches of a plan in order, from batch `start` on."""
        ...


class TrainingRows(Dataset[tuple[Tensor, Tensor]]):
    """The rows of some tables that are trained on, as `labels` numbers them."""

    def __init__(
        self, tables: Sequence[str | Place], spec: Train, held_out: Collection[str] = ()
    ) -> None:
        """Open the row caches of the tables, which hold all rows that could be trained on.

        Trainings on different shares of the same tables have their caches in common.
        """
        self.chosen = labels(tables, spec, held_out)
        kept_only = not generated.looks_at_dropped(spec)
        # A table of which no row is chosen is not copied.
        self._caches = {
            int(number): storage.RowCache(
                tables[number], places.node_cache(), trainable(spec), kept_only
            )
            for number in np.unique(self.chosen.places[:, 0])
        }
        self._size, self._processes = spec.image_size, spec.loader_processes

    def __len__(self) -> int:
        return len(self.chosen.labels)

    def __getitem__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch: images (B, 3, H, W) uint8 and labels (B,) int64."""
        return to_tensors(self.decode(rows), self.chosen.labels[rows])

    def decode(self, rows: Sequence[int]) -> images.Pixels:
        """The images of a batch, (B, H, W, 3)."""
        places = self.chosen.places[rows].tolist()
        encoded = [self._caches[table].image(row) for table, row in places]
        return images.decode_batch(encoded, self._size)

    def batches(self, plan: Plan, worker: int, start: int = 0) -> Iterable[tuple[Tensor, Tensor]]:
        """A worker's batches of a plan in order, from batch `start` on."""
        return execute(self, plan, worker, start, self._processes)


def to_tensors(pixels: images.Pixels, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Images (B, H, W, 3) and labels (B,) as the network takes them, without a copy."""
    # Channels last in memory, which is what both CPU and GPU convolutions like.
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels)


def execute(
    rows: TrainingRows, plan: Plan, worker: int, start: int = 0, processes: int = 0
) -> "DataLoader[tuple[Tensor, Tensor]]":
    """Iterate over a worker's batches of a plan, from batch `start` on.

    Args:
        processes: Decoding processes beside this one; 0 decodes here.
    """
    return DataLoader(
        rows,
        # A sampler of whole batches: one `__getitem__` per batch, no collation.
        sampler=plan[start:, worker].tolist(),
        batch_size=None,
        num_workers=processes,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if processes else None,
    )


def _trainable(tables: Sequence[str | Place], where: pc.Expression, dropped: bool) -> pa.Table:
    """What decides about each row that could be trained on, and its place; rows by id."""
    columns = (*DECIDING, schema.SCORES, schema.DROP_REASON) if dropped else DECIDING
    parts = []
    for number, path in enumerate(tables):
        part = storage.read(path, columns, where, kept_only=not dropped)
        place = {TABLE: np.full(len(part), number), ROW: np.arange(len(part))}
        for name, values in place.items():
            part = part.append_column(name, pa.array(values, pa.int64()))
        parts.append(part)
    # The table breaks ties, so that even rows with the same id have an order.
    order = [(schema.OBSERVATION_ID, "ascending"), (TABLE, "ascending")]
    # Writers differ in what they call nullable.
    return pa.concat_tables(parts, promote_options="permissive").sort_by(order)


def _of_sources(rows: pa.Table, wanted: Sequence[str], tables: Sequence[str | Place]) -> pa.Table:
    if not wanted:
        return rows
    there = set(rows[schema.SOURCE].to_pylist())
    if not set(wanted) <= there:
        found = [storage.read(path, [schema.SOURCE], storage.CLUSTERABLE) for path in tables]
        unlabelled = {name for part in found for name in part[schema.SOURCE].to_pylist()}
        rules.check_sources(wanted, there, unlabelled=unlabelled)
    return rows.filter(pc.is_in(rows[schema.SOURCE], value_set=pa.array(wanted)))


def _clustered(rows: pa.Table, spec: Train) -> pa.BooleanArray:
    """Which rows have no label of their own."""
    wanted = spec.clusters.sources
    if not wanted:
        return pa.array(np.ones(len(rows), dtype=bool))
    rules.check_sources(wanted, set(rows[schema.SOURCE].to_pylist()), "train.clusters.sources")
    return pc.is_in(rows[schema.SOURCE], value_set=pa.array(wanted)).combine_chunks()


def _with_labels_or_clustered(rows: pa.Table, spec: Train) -> pa.Table:
    """Leave out rows without an identity where these are what is learned."""
    return rows.filter(pc.or_(_clustered(rows, spec), pc.is_valid(rows[schema.IDENTITY])))


def _numbered(
    rows: pa.Table, cameras: list[str | None], spec: Train
) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the classes, and the label of each row, -1 where it is clustered.

    Raises:
        ValueError: If there are fewer than two and no row is clustered.
    """
    if spec.labels == "clusters":
        own = ~_clustered(rows, spec).to_numpy(zero_copy_only=False)
        numbers = np.full(len(rows), -1, dtype=np.int64)
        if not own.any():
            # A package has a classifier, of which nothing is learned here.
            return [UNKNOWN], numbers
        names, (given,) = number_sorted(rows[schema.IDENTITY].filter(pa.array(own)).to_pylist())
        numbers[own] = given
        return names, numbers
    names, (numbers,) = number_sorted(
        cameras if spec.target == "camera" else rows[schema.IDENTITY].to_pylist()
    )
    if len(names) < 2:
        kind = {"identity": "identities", "camera": "cameras"}[spec.target]
        raise ValueError(f"training needs at least 2 {kind}; the table has {len(names)}")
    return names, numbers


def _with_camera(rows: pa.Table) -> pa.Table:
    known = rows.filter(pc.is_valid(rows[schema.CAMERA]))
    rules.check_cameras(len(known), len(rows))
    return known


def _clothes(
    names: pa.ChunkedArray,
    labels: NDArray[np.int64],
    synthetic: NDArray[np.bool_],
    spec: Clothes,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the rows' clothes and who wears them; the same name on two people is two."""
    learned = ~synthetic | (spec.synthetic == "all")
    worn = [
        (label, name) if name is not None and there else None
        for label, name, there in zip(
            labels.tolist(), names.to_pylist(), learned.tolist(), strict=True
        )
    ]
    found = sorted({pair for pair in worn if pair is not None})
    wearers = np.array([label for label, _ in found], dtype=np.int64)
    rules.check_clothes(spec.weight, len(np.unique(wearers)), int(learned.sum()))
    number_of = {pair: number for number, pair in enumerate(found)}
    numbers = [-1 if pair is None else number_of[pair] for pair in worn]
    return np.array(numbers, dtype=np.int64), wearers


def _check_origins(mixing: str, there: dict[str, int]) -> None:
    needed = [mixing] if mixing in there else list(there)
    if not all(there[origin] for origin in needed):
        raise ValueError(
            f"train.mixing is {mixing!r}, which needs {' and '.join(needed)} images, but the "
            f"labelled training images are {there['real']} real and {there['synthetic']} "
            f"synthetic ones"
        )
