"""Which format should hold the table of observations on a disk: Parquet, Lance or Arrow IPC?

Writes the same random rows in every format and measures write, size, scan, random access and
append, then the row cache that training reads, each beside the physical limit of the same bytes
in the same run. docs/storage.md says what we decided.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
from support.access import DRAW_ROWS, Raw, draws, make_raw, rates, scan_seconds, take_ms
from support.reporting import Figure, arguments, best, report, timed
from support.tables import (
    ARROW,
    LANCE,
    RECORD,
    Format,
    Place,
    Rows,
    Take,
    formats,
    local_place,
    make_table,
    write_afresh,
)

from ray_reid import schema, storage

APPEND_ROWS = 1000
# Limits on measured / reference, set before measuring.
BARS = {
    f"scan {RECORD.name}": 0.1,
    "random row-cache": 10.0,
    "build row-cache": 0.1,
    f"size {RECORD.name}": 1.05,
    f"torn append {RECORD.name}, aside": 1.0,
    "torn append lance": 1.0,
}


def write_cases(
    forms: Sequence[Format], table: pa.Table, place: Place, raw: Raw
) -> Iterator[Figure]:
    """Write every format and weigh it."""
    for form in forms:
        # The first write also imports the library.
        write_afresh(form, table.slice(0, DRAW_ROWS), place)
        seconds = best(partial(write_afresh, form, table, place), 2)
        yield from rates(f"write {form.name}", seconds, raw.write_seconds, raw)
    for form in forms:
        files = filter(Path.is_file, (Path(place.root) / form.name).rglob("*"))
        size = sum(path.stat().st_size for path in files)
        yield Figure(f"size {form.name}", size / 1e6, "MB", raw.total / 1e6)


def read_cases(forms: Sequence[Format], place: Place, raw: Raw) -> Iterator[Figure]:
    """Scan every format, and draw rows from it with a warm and a cold page cache."""
    rows, limit = len(raw.sizes), raw.read_seconds()
    for form in forms:
        yield from rates(f"scan {form.name}", scan_seconds(form, place, 3), limit, raw)
    copy = raw.draw_ms()
    for form in forms:
        yield Figure(f"random {form.name}", take_ms(form.open(place), draws(rows, 30)), "ms", copy)
    for form in forms:
        cold = cold_ms(Path(place.root) / form.name, partial(form.open, place), draws(rows, 5))
        yield Figure(f"random, cold first draw, {form.name}", cold, "ms", copy)


def cold_ms(path: Path, opened: Callable[[], Take], plan: Sequence[Rows]) -> float:
    """Median milliseconds of a first draw, opening included, once the page cache forgot `path`."""
    times = []
    for rows in plan:
        for file in filter(Path.is_file, path.rglob("*")):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        times.append(timed(partial(first_draw, opened, rows)))
    return statistics.median(times) * 1000


def first_draw(opened: Callable[[], Take], rows: Rows) -> Sequence[bytes]:
    """Open and draw once."""
    return opened()(rows)


def cache_cases(place: Place, raw: Raw) -> Iterator[Figure]:
    """Build the row cache, draw from it, and count the draws that pay for it."""
    rows, directory = len(raw.sizes), Path(place.root) / "rows"

    def build(run: int = 0) -> storage.RowCache:
        where = storage.TRAINABLE
        return storage.RowCache(place.uri(RECORD.name), directory / str(run), where)

    def opened() -> Take:
        cache = build()
        return lambda rows: [cache.image(row).to_pybytes() for row in rows.tolist()]

    seconds = min(timed(partial(build, run)) for run in range(2))
    yield from rates("build row-cache", seconds, raw.copy_seconds(), raw)
    plan, copy = draws(rows, 30), raw.draw_ms()
    cached = take_ms(opened(), plan)
    yield Figure("random row-cache", cached, "ms", copy)
    cold = cold_ms(directory / "0", opened, draws(rows, 5))
    yield Figure("random, cold first draw, row-cache", cold, "ms", copy)
    saved = take_ms(RECORD.open(place), plan) - cached
    if saved > 0:
        case = "draws that pay for row-cache; reference an epoch"
        yield Figure(case, seconds * 1000 / saved, "draws", rows / DRAW_ROWS)


def append_cases(
    forms: Sequence[Format], table: pa.Table, place: Place, raw: Raw
) -> Iterator[Figure]:
    """Append while a reader is in the middle of a scan, and leave a half-written file behind."""
    more = make_table(APPEND_ROWS, seed=1)
    blob = b"".join(more[schema.IMAGE].to_pylist())
    limit = timed(partial(raw.path.with_name("appended.bin").write_bytes, blob))
    for form in (form for form in forms if form in (RECORD, LANCE, ARROW)):
        reader = iter(form.scan(place))
        seen = next(reader).num_rows
        seconds = timed(partial(form.write, more, place, part=1))
        seen += sum(batch.num_rows for batch in reader)
        assert form.count(place) == len(table) + APPEND_ROWS
        yield Figure(f"append {form.name}", seconds * 1000, "ms", limit * 1000)
        yield Figure(f"append, rows seen by an open reader, {form.name}", seen, "rows", len(table))
    before = len(table) + APPEND_ROWS
    for case, form, name in (
        (f"{RECORD.name}, aside", RECORD, "_part-2.parquet"),
        (f"{RECORD.name}, in place", RECORD, "part-2.parquet"),
        ("lance", LANCE, "data/torn.lance"),
    ):
        if form in forms:
            yield Figure(f"torn append {case}", torn_rows(form, place, name), "rows", before)


def torn_rows(form: Format, place: Place, name: str) -> int:
    """Count the rows readable beside half a data file, as a killed writer leaves it; 0 if none."""
    directory = Path(place.root) / form.name
    whole = max(filter(Path.is_file, directory.rglob("*")), key=lambda path: path.stat().st_size)
    torn = directory / name
    torn.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    try:
        return form.count(place)
    except pa.ArrowInvalid:
        return 0
    finally:
        torn.unlink()


def measure(rows: int) -> Iterator[Figure]:
    """Measure every case; appends come last because they change the tables."""
    with tempfile.TemporaryDirectory(prefix="storage-") as directory:
        place, table, forms = local_place(Path(directory)), make_table(rows), formats()
        raw = make_raw(table, Path(directory))
        for figures in (
            write_cases(forms, table, place, raw),
            read_cases(forms, place, raw),
            cache_cases(place, raw),
            append_cases(forms, table, place, raw),
        ):
            for figure in figures:
                yield replace(figure, bar=BARS.get(figure.case))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args()
    if options.rows < DRAW_ROWS:
        parser.error(f"--rows {options.rows} is too few; choose at least {DRAW_ROWS}")
    report(measure(options.rows), options.json)


if __name__ == "__main__":
    main()
