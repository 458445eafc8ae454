"""Approximate search with faiss: inverted lists (IVF) and graphs (HNSW); and any kind on GPUs.

Such an index numbers the rows of a segment. It keeps a copy of the vectors of its own: in the
order of its lists, or beside its graph.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ray_reid import config
from ray_reid.config import Index
from ray_reid.galleries import nearest
from ray_reid.galleries.nearest import Found
from ray_reid.galleries.segment import Vectors
from ray_reid.galleries.where import Mask

log = logging.getLogger(__name__)

# faiss asks for this many vectors to train each centre on.
TRAIN_ROWS = 39
EF_CONSTRUCTION = 80
# A GPU finds no more than this at once.
MAX_GPU_K = 2048
# Below this share of living rows, an exact search of them is as fast and misses nothing.
EXACT_SHARE = 0.1
_ADD_ROWS = 65536


def checked(index: Mapping[str, Any]) -> Index:
    """Read a recipe's section `index`.

    Raises:
        ValueError: If a value breaks a rule.
    """
    return config.validate({"name": "index", "index": dict(index)}).index


def num_lists(settings: Index, rows: int) -> int:
    """Lists of an IVF index over so many rows: 4 times the root, each with enough to train on.

    Raises:
        ValueError: If the recipe asks for more lists than there are rows.
    """
    if settings.nlist is not None:
        if settings.nlist > rows:
            raise ValueError(
                f"index.nlist is {settings.nlist} but the gallery has {rows} rows; choose at most "
                "that, or leave it out"
            )
        return settings.nlist
    return max(1, min(round(4 * math.sqrt(rows)), rows // TRAIN_ROWS))


def build(vectors: Vectors, index: Mapping[str, Any]) -> Any:
    """Train and fill the index of the kind that a recipe's section `index` names.

    Raises:
        ValueError: If its settings do not fit the vectors.
    """
    faiss = _faiss()
    settings = checked(index)
    rows, dimension = vectors.shape
    if settings.kind == "hnsw":
        found = faiss.IndexHNSWFlat(dimension, settings.num_links, faiss.METRIC_INNER_PRODUCT)
        found.hnsw.efConstruction = EF_CONSTRUCTION
    else:
        lists = num_lists(settings, rows)
        centres = faiss.IndexFlatIP(dimension)
        found = faiss.IndexIVFFlat(centres, dimension, lists, faiss.METRIC_INNER_PRODUCT)
        # Centres of unit vectors are unit vectors too.
        found.cp.spherical = True
        found.cp.min_points_per_centroid = 1
        some = np.random.default_rng(0).permutation(rows)[: TRAIN_ROWS * lists]
        found.train(np.ascontiguousarray(vectors[np.sort(some)]))
    for start in tqdm(range(0, rows, _ADD_ROWS), desc="index", unit="block", dynamic_ncols=True):
        found.add(np.ascontiguousarray(vectors[start : start + _ADD_ROWS]))
    return found


def write(index: Any, file: Path) -> None:
    """Write an index to a file."""
    faiss = _faiss()
    faiss.write_index(index, str(file))


class Approximate:
    """An index over a segment, on the GPUs where there are any."""

    def __init__(self, index: Any, settings: Index) -> None:
        """Take a faiss index and what says how hard it searches."""
        self.on_gpu = settings.kind != "hnsw" and num_gpus() > 0
        if settings.kind == "hnsw" and num_gpus():
            log.info("faiss has no HNSW on a GPU: it stays on the processor")
        self.rows = int(index.ntotal)
        self.settings = settings
        if settings.kind == "ivf":
            index.nprobe = num_probes(settings, index.nlist)
        self._index = _on_gpus(index) if self.on_gpu else index

    @classmethod
    def read(cls, file: Path, settings: Index, rows: int) -> "Approximate":
        """Read the index of a segment of so many rows.

        Raises:
            FileNotFoundError: If a compaction has removed the file.
            ValueError: If it is damaged, or is not of that segment.
        """
        faiss = _faiss()
        file.stat()
        try:
            index = faiss.read_index(str(file))
        except RuntimeError as error:
            raise ValueError(
                f"{str(file)!r} is not a whole faiss index; make it again with Writer.rebuild"
            ) from error
        if index.ntotal != rows:
            raise ValueError(
                f"{str(file)!r} has {index.ntotal} vectors but its table has {rows} rows; make it "
                "again with Writer.rebuild"
            )
        return cls(index, settings)

    def search(self, vectors: Vectors, queries: Vectors, k: int, mask: Mask | None) -> Found:
        """As `nearest.search`, about; exactly where the mask leaves few rows."""
        share = 1.0 if mask is None else float(mask.mean())
        if share <= EXACT_SHARE:
            return nearest.search(vectors, queries, k, mask)
        k = min(k, self.rows)
        if self.on_gpu:
            return self._search_on_gpu(vectors, queries, k, mask if share < 1 else None)
        similarity, number = self._index.search(queries, k, params=self._parameters(k, share, mask))
        return similarity, number

    def _search_on_gpu(
        self, vectors: Vectors, queries: Vectors, k: int, mask: Mask | None
    ) -> Found:
        """A GPU takes no mask: it is asked for more, and what does not fit left out."""
        count = self.rows if mask is None else int(mask.sum())
        if nearest.num_overfetched(k, count, self.rows) > MAX_GPU_K:
            return nearest.search(vectors, queries, k, mask)
        if mask is None:
            return self._find(queries, k)
        return nearest.overfetched(self._find, vectors, queries, min(k, count), mask)

    def _find(self, queries: Vectors, k: int) -> Found:
        similarity, number = self._index.search(queries, k)
        return similarity, number

    def _parameters(self, k: int, share: float, mask: Mask | None) -> Any:
        """How hard to search, and among which rows: the fewer fit, the harder."""
        faiss = _faiss()
        chosen: dict[str, Any] = {}
        if mask is not None and share < 1:
            chosen["sel"] = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        if self.settings.kind == "hnsw":
            width = max(self.settings.ef_search, k)
            return faiss.SearchParametersHNSW(efSearch=round(width / share), **chosen)
        probes = num_probes(self.settings, self._index.nlist)
        wider = min(self._index.nlist, round(probes / share))
        return faiss.SearchParametersIVF(nprobe=wider, **chosen)


def num_probes(settings: Index, lists: int) -> int:
    """Lists that a search looks into: a 500th, at least 8."""
    return min(lists, settings.nprobe or max(8, lists // 500))


def flat_on_gpus(vectors: Vectors, settings: Index) -> Approximate:
    """An exact index of all vectors on the GPUs."""
    faiss = _faiss()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return Approximate(index, settings)


def num_gpus() -> int:
    """GPUs that this faiss can use."""
    faiss = _faiss()
    return int(getattr(faiss, "get_num_gpus", lambda: 0)())


def _on_gpus(index: Any) -> Any:
    return _faiss().index_cpu_to_all_gpus(index)


def _faiss() -> Any:
    """The library, whose type hints know no search parameters; an extra, so imported late."""
    import faiss

    return faiss
