"""How near is a gallery's search to what the machine can do, and what do its promises cost?

Exact search against the better of raw faiss and a matrix product with top-k, approximate search
against exact, loading, memory and durable writes, each beside its limit in the same run; with
`--peers`, the same rows in LanceDB, or in SQLite with faiss, beside the gallery instead. The
vectors lie as embeddings do: identities of 20 images around unit centres, with cosine 0.6 between
two images of one. Of independent vectors no approximate index finds much.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from support import stores
from support.reporting import Figure, arguments, best, report, timed

from ray_reid.gallery.embedded import nearest
from ray_reid.gallery.embedded.segment import ROWS
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer
from ray_reid.gallery.gallery import Gallery

DIMENSION, K = 512, 10
IMAGES, CAMERAS = 20, 20
BATCHES = (1, 64, 1024)
# Cosine 1 / (1 + NOISE ** 2) between two images of an identity.
NOISE = 0.8
BLOCK = 65536
# Queries whose similarities to all rows are held at once.
TOGETHER = 64
Vectors = NDArray[np.float32]


def around(identity: NDArray[np.int64], seed: int) -> Vectors:
    """A unit vector around the centre of each identity; centres are the same for every seed."""
    centres = np.stack([np.random.default_rng([7, one]).standard_normal(DIMENSION, np.float32)
                        for one in np.unique(identity).tolist()])  # fmt: skip
    centres = centres[np.unique(identity, return_inverse=True)[1]]
    noise = np.random.default_rng(seed).standard_normal(centres.shape, np.float32)
    vectors = centres + NOISE * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def blocks(rows: int) -> Iterator[tuple[pa.Table, Vectors]]:
    """The gallery, in the order of its ids."""
    for start in range(0, rows, BLOCK):
        number = np.arange(start, min(start + BLOCK, rows))
        identity = number // IMAGES
        columns = {
            "observation_id": [f"{one:032x}" for one in number.tolist()],
            "identity": [f"drawn:{one}" for one in identity.tolist()],
            "camera": [f"c{one % CAMERAS}" for one in number.tolist()],
            "source": ["drawn"] * len(number),
            "split": ["gallery"] * len(number),
        }
        nulls = {name: [None] * len(number) for name in ROWS.names if name not in columns}
        table = pa.table({name: {**columns, **nulls}[name] for name in ROWS.names}, schema=ROWS)
        yield table, around(identity, start)


def interleaved(works: Sequence[Callable[[], object]], runs: int) -> list[float]:
    """Seconds of the fastest run of each, all in turn, so that other load hits all alike."""
    rounds = [[timed(work) for work in works] for _ in range(runs)]
    return [min(one) for one in zip(*rounds, strict=True)]


def product(vectors: Vectors, queries: Vectors) -> None:
    """The k nearest by a matrix product and top-k, in PyTorch."""
    import torch

    stored = torch.from_numpy(vectors).T
    for start in range(0, len(queries), TOGETHER):
        (torch.from_numpy(queries[start : start + TOGETHER]) @ stored).topk(K)


def flat(gallery: Gallery, queries: Vectors, runs: int) -> Iterator[Figure]:
    """Exact search of every batch size, then with filters and deletions."""
    import faiss

    raw = faiss.IndexFlatIP(DIMENSION)
    raw.add(gallery.source.view().segment.vectors)
    vectors = faiss.rev_swig_ptr(raw.get_xb(), raw.ntotal * DIMENSION).reshape(-1, DIMENSION)
    faiss.cvar.distance_compute_blas_threshold = nearest.BLAS_QUERIES
    for batch in BATCHES:
        some = np.ascontiguousarray(queries[:batch])
        ours, theirs, multiplied = interleaved(
            [
                partial(gallery.search, some, K),
                partial(raw.search, some, K),
                partial(product, vectors, some),
            ],
            runs,
        )
        better = "faiss" if theirs < multiplied else "product"
        case = f"flat, {len(gallery):,} rows, batch {batch}; {better}"
        yield Figure(case, batch / ours, "queries/s", batch / min(theirs, multiplied), 0.9)
    some = np.ascontiguousarray(queries[:64])
    cameras = {"one camera of 20": ("c3",), "19 cameras of 20": tuple(f"c{n}" for n in range(19))}
    for name, wanted in cameras.items():
        filtered, plain = interleaved(
            [
                partial(gallery.search, some, K, Where(cameras=wanted)),
                partial(gallery.search, some, K),
            ],
            runs,
        )
        case = f"flat, {len(gallery):,} rows, batch 64, {name}; no filter"
        yield Figure(case, 64 / filtered, "queries/s", 64 / plain)


def approximate(
    writer: Writer, kind: str, queries: Vectors, exact: list[set[str]], runs: int
) -> Iterator[Figure]:
    """An approximate index: its recall, and its speed beside that of the exact search."""
    before = Gallery(writer)
    rows = f"{kind}, {len(before):,} rows"
    yield Figure(f"{rows}, built", timed(partial(writer.rebuild, {"kind": kind})), "s")
    megabytes = sum(file.stat().st_size for file in (writer.path / "search").iterdir()) / 2**20
    raw = 4 * len(before) * DIMENSION / 2**20
    yield Figure(f"{rows}, its file; raw vectors", megabytes, "MB", raw)
    gallery = Gallery(writer)
    found = gallery.search(queries, K)
    pairs = zip(exact, found, strict=True)
    hits = sum(len(true & {hit.observation_id for hit in ours}) for true, ours in pairs)
    yield Figure(f"{rows}, recall@{K}", hits / (K * len(queries)), "recall", bar=0.98)
    flat_view = before.source.view()
    for batch in BATCHES:
        some = np.ascontiguousarray(queries[:batch])
        ours, exactly = interleaved(
            [
                partial(gallery.search, some, K),
                partial(nearest.search, flat_view.segment.vectors, some, K),
            ],
            runs,
        )
        yield Figure(f"{rows}, batch {batch}; flat", batch / ours, "queries/s", batch / exactly, 10)
    writer.rebuild({"kind": "flat"})


def loading(path: Path, queries: Vectors, runs: int) -> Iterator[Figure]:
    """Seconds from nothing to the first hit, and the memory that a search leaves resident."""

    def first_hit() -> None:
        Gallery.open(path).search(queries[:1], K)

    rows = len(Gallery.open(path))
    yield Figure(f"load {rows:,} rows, first hit included", best(first_hit, runs), "s", bar=10)
    done = subprocess.run(
        [sys.executable, __file__, "--resident", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    megabytes = json.loads(done.stdout)
    raw = 4 * rows * DIMENSION / 2**20
    yield Figure(f"memory of {rows:,} rows; raw vectors", megabytes, "MB", raw, 1.3)


def resident(path: Path) -> None:
    """Print the megabytes that opening and searching a gallery add to a process."""
    import faiss

    def megabytes() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    # Its threads and buffers are there whatever is searched.
    small = np.eye(64, DIMENSION, dtype=np.float32)
    faiss.knn(small, small, 1)
    small @ small[0]
    before = megabytes()
    gallery = Gallery.open(path)
    queries = np.array(gallery.source.view().segment.vectors[:64])
    for batch in (1, 64):
        gallery.search(queries[:batch], K)
    sys.stdout.write(f"{megabytes() - before}\n")


def changing(writer: Writer, runs: int) -> Iterator[Figure]:
    """Durable writes beside the same bytes appended and synced, deletions, and compaction."""
    rows, queries = len(writer), around(np.arange(64), 1)
    vectors, counter = around(np.full(runs * 40, 10**9), 2), iter(range(10**9))

    def enrol() -> None:
        number = next(counter)
        row = {"observation_id": f"new{number}", "source": "drawn", "image": bytes(6000)}
        writer.enrol([row], vectors[[number]], writer.model)

    before = writer.log_bytes
    enrol()
    record = bytes(writer.log_bytes - before)
    descriptor = os.open(writer.path / "plain", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def append() -> None:
        os.write(descriptor, record)
        os.fsync(descriptor)

    times = [interleaved([enrol, append], 3) for _ in range(runs * 10)]
    os.close(descriptor)
    (writer.path / "plain").unlink()
    ours, plain = (float(np.median(one)) for one in zip(*times, strict=True))
    yield Figure("enrol one row; append and sync alone", 1000 * ours, "ms", 1000 * plain)
    gallery = Gallery(writer)
    plain_seconds = best(partial(gallery.search, queries, K), runs)
    ids = [f"{one:032x}" for one in range(0, rows, 100)]
    writer.delete(ids)
    seconds = best(partial(gallery.search, queries, K), runs)
    case = f"flat, {rows:,} rows, batch 64, 1 % deleted; none"
    yield Figure(case, 64 / seconds, "queries/s", 64 / plain_seconds)
    yield Figure(f"compact {rows:,} rows", timed(writer.compact), "s")
    yield Figure(f"check {rows:,} rows", timed(lambda: _whole(writer)), "s")


def _whole(writer: Writer) -> None:
    problems = writer.check()
    if problems:
        raise RuntimeError(f"the gallery of the benchmark is damaged: {problems}")


def peers(rows: int, names: Sequence[str], runs: int) -> Iterator[Figure]:
    """The gallery beside other stores of the same rows; the reference is the other store."""
    queries = around(np.arange(64), 10**9)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / name
            Writer.create(path / "ours", "drawn", DIMENSION, blocks(rows)).close()
            stores.STORES[name](path / name, blocks(rows))
            yield from beside(path, name, queries, runs)


def beside(path: Path, name: str, queries: Vectors, runs: int) -> Iterator[Figure]:
    """The gallery at `ours` beside the store of that name: opened, searched, written."""
    kind = stores.STORES[name]

    ours, theirs = interleaved(
        [
            lambda: Gallery.open(path / "ours").search(queries[:1], K),
            lambda: kind(path / name).search(queries[:1], K),
        ],
        runs,
    )
    yield Figure(f"open, first hit included; {name}", ours, "s", theirs)
    with Writer(path / "ours") as writer:
        gallery, store = Gallery(writer), kind(path / name)
        _agree(gallery, store, queries)

        def searched(batch: int, camera: str | None, what: str) -> Figure:
            where = Where() if camera is None else Where(cameras=(camera,))
            some = np.ascontiguousarray(queries[:batch])
            ours, theirs = interleaved(
                [
                    partial(gallery.search, some, K, where),
                    partial(store.search, some, K, camera),
                ],
                runs,
            )
            case = f"search, batch {batch}{what}; {name}"
            return Figure(case, batch / ours, "queries/s", batch / theirs)

        yield searched(1, None, "")
        yield searched(64, None, "")
        yield searched(64, "c3", ", one camera of 20")
        vectors, numbers = around(np.full(100, 10**9), 2), iter(range(10**9))

        def new() -> tuple[dict[str, str], Vectors]:
            number = next(numbers)
            row = {"observation_id": f"{name}{number}", "source": "drawn", "split": "gallery"}
            return row, vectors[number % len(vectors)]

        def enrol() -> None:
            row, vector = new()
            writer.enrol([row], vector[None], writer.model)

        times = [interleaved([enrol, lambda: store.enrol(*new())], 1) for _ in range(runs * 10)]
        ours, theirs = (float(np.median(one)) for one in zip(*times, strict=True))
        yield Figure(f"enrol one row; {name}", 1000 * ours, "ms", 1000 * theirs)
        yield searched(1, None, ", after these")
        ids = [f"{one:032x}" for one in range(0, 1000, 10)]
        ours, theirs = timed(partial(writer.delete, ids)), timed(partial(store.delete, ids))
        yield Figure(f"delete {len(ids)} rows at once; {name}", 1000 * ours, "ms", 1000 * theirs)


def _agree(gallery: Gallery, store: stores.Store, queries: Vectors) -> None:
    ours = [{hit.observation_id for hit in hits} for hits in gallery.search(queries, K)]
    theirs = [set(hits) for hits in store.search(queries, K)]
    if ours != theirs:
        raise RuntimeError("the two stores find other images")


def measure(sizes: Sequence[int], kinds: Sequence[str], runs: int) -> Iterator[Figure]:
    """Measure every size, and approximate kinds at the largest."""
    for rows in sizes:
        identity = np.random.default_rng(3).integers(rows // IMAGES, size=max(BATCHES))
        queries = around(identity, 10**9)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gallery"
            with Writer.create(path, "drawn", DIMENSION, blocks(rows)) as writer:
                yield from loading(path, queries, runs)
                yield from flat(Gallery(writer), queries, runs)
                if rows == max(sizes):
                    found = Gallery(writer).search(queries, K)
                    exact = [{hit.observation_id for hit in hits} for hits in found]
                    for kind in kinds:
                        yield from approximate(writer, kind, queries, exact, runs)
                yield from changing(writer, runs)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="*", choices=("ivf", "hnsw"), default=["ivf"])
    parser.add_argument("--runs", type=int, default=3, help="runs of which the best counts")
    parser.add_argument("--resident", type=Path, help="print the memory of a gallery, in MB")
    parser.add_argument(
        "--peers", nargs="+", choices=list(stores.STORES), help="stores beside ours"
    )
    options = parser.parse_args()
    for name in options.peers or ():
        if (package := stores.missing(name)) is not None:
            parser.error(f"--peers {name} needs the package {package!r}, which is not installed")
    if min(options.rows) < 1000:
        parser.error(f"--rows {min(options.rows)} is too few; choose at least 1000")
    if options.runs < 1:
        parser.error(f"--runs {options.runs} is too few; choose at least 1")
    if options.peers:
        report(peers(min(options.rows), options.peers, options.runs), options.json)
    elif options.resident:
        resident(options.resident)
    else:
        report(measure(options.rows, options.kinds, options.runs), options.json)


if __name__ == "__main__":
    main()
