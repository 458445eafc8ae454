"""Approximate search with faiss: inverted lists of codes (IVF) and graphs (HNSW); and on GPUs.

Such an index numbers the rows of a segment. IVF keeps half a bit for each of 512 dimensions,
chooses candidates by these, and compares the vectors themselves, where the segment has them: of a
million embeddings with 512 dimensions it holds 40 MB, not 2 GB, and is 10 times as fast as lists
of vectors at the same recall. HNSW keeps a copy of the vectors beside its graph.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ray_reid.gallery.embedded import nearest
from ray_reid.gallery.embedded.nearest import Found
from ray_reid.gallery.embedded.segment import Vectors
from ray_reid.gallery.embedded.where import Mask
from ray_reid.recipe import recipes
from ray_reid.recipe.index import Index
from ray_reid.runtime.bars import bar

# faiss asks for this many vectors to train each centre on; and for codes these are enough.
TRAIN_ROWS = 39
TRAIN_CODES = 65536
# A code is one of so many values, 4 bits, and stands for at most so many dimensions; short vectors
# have fewer of these to a code, to have so many codes.
VALUES, DIMENSIONS_OF_CODE, CODES = 16, 8, 64
# Rows chosen by their codes to be compared, at least, and for each row asked for.
CANDIDATES, CANDIDATES_OF_ONE = 100, 3
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
    return recipes.validate({"name": "index", "index": dict(index)}).index


def num_lists(settings: Index, rows: int) -> int:
    """Lists of an IVF index over so many rows: a quarter of the root.

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
    return max(1, round(math.sqrt(rows) / 4))


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
        codes = dimension // _dimensions_of_code(dimension)
        found = faiss.IndexIVFPQFastScan(
            centres, dimension, lists, codes, int(math.log2(VALUES)), faiss.METRIC_INNER_PRODUCT
        )
        # Else every list of every query would need a table of its own.
        found.by_residual = False
        # Centres of unit vectors are unit vectors too.
        found.cp.spherical = True
        found.cp.min_points_per_centroid = 1
        wanted = max(TRAIN_ROWS * lists, TRAIN_CODES)
        some = np.sort(np.random.default_rng(0).permutation(rows)[:wanted])
        # A code needs as many vectors as it has values; few are taken again.
        found.train(np.ascontiguousarray(vectors[np.resize(some, max(len(some), VALUES))]))
    for start in bar("index", "block", over=range(0, rows, _ADD_ROWS)):
        found.add(np.ascontiguousarray(vectors[start : start + _ADD_ROWS]))
    return found


def write(index: Any, file: Path) -> None:
    """Write an index to a file."""
    faiss = _faiss()
    faiss.write_index(index, str(file))


class Approximate:
    """An index over a segment."""

    def __init__(self, index: Any, settings: Index) -> None:
        """Take a faiss index and what says how hard it searches."""
        self.settings = settings
        self._index = index

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
        rows = len(vectors)
        k = min(k, rows)
        parameters = self._parameters(k, share, mask)
        if self.settings.kind == "hnsw":
            similarity, number = self._index.search(queries, k, params=parameters)
            return similarity, number
        wanted = min(rows, max(CANDIDATES, CANDIDATES_OF_ONE * k))
        _, candidates = self._index.search(queries, wanted, params=parameters)
        return nearest.among(vectors, queries, candidates, k)

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


class OnGpus:
    """All vectors of a segment on the GPUs, searched exactly."""

    def __init__(self, vectors: Vectors) -> None:
        """Copy the vectors there."""
        faiss = _faiss()
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
        self._index = faiss.index_cpu_to_all_gpus(index)

    def search(self, vectors: Vectors, queries: Vectors, k: int, mask: Mask | None) -> Found:
        """As `nearest.search`; a GPU takes no mask: it is asked for more, and these left out."""
        rows = len(vectors)
        count = rows if mask is None else int(mask.sum())
        few = mask is not None and count <= EXACT_SHARE * rows
        k = min(k, rows)
        if few or nearest.num_overfetched(k, count, rows) > MAX_GPU_K:
            return nearest.search(vectors, queries, k, mask)
        if mask is None:
            return self._find(queries, k)
        return nearest.overfetched(self._find, vectors, queries, min(k, count), mask)

    def _find(self, queries: Vectors, k: int) -> Found:
        similarity, number = self._index.search(queries, k)
        return similarity, number


Search = Approximate | OnGpus


def num_probes(settings: Index, lists: int) -> int:
    """Lists that a search looks into: half of them."""
    return min(lists, settings.nprobe or math.ceil(lists / 2))


def num_gpus() -> int:
    """GPUs that this faiss can use."""
    faiss = _faiss()
    return int(getattr(faiss, "get_num_gpus", lambda: 0)())


def _dimensions_of_code(dimension: int) -> int:
    """The most that divide the dimension and leave enough codes."""
    most = min(DIMENSIONS_OF_CODE, max(1, dimension // CODES))
    return max(n for n in range(1, most + 1) if dimension % n == 0)


def _faiss() -> Any:
    """The library, whose type hints know no search parameters; an extra, so imported late."""
    import faiss

    return faiss
