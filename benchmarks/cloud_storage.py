"""How do the formats behave on object storage: how fast a scan, how many requests for a draw?

Needs moto, an S3 double on the loopback. The milliseconds are moto's, which reads a whole object
for every range it serves; no bar is set on them. The requests are the formats' own.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs
from support.access import DRAW_ROWS, Raw, draws, make_raw, rates, scan_seconds, take_ms
from support.reporting import Figure, arguments, best, report, timed
from support.tables import ARROW, RECORD, Place, formats, make_table

from ray_reid import storage

BUCKET = "bench"
KEY = "testing"
REGION = "us-east-1"


@contextmanager
def s3_double(log: Path) -> Iterator[Place]:
    """Start moto's S3 on a free loopback port and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as sink:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        _wait_for(port)
        yield _bucket(f"127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _bucket(address: str) -> Place:
    # As a user would name the server.
    os.environ["AWS_ENDPOINT_URL"] = f"http://{address}"
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = KEY
    os.environ["AWS_DEFAULT_REGION"] = REGION
    filesystem = pafs.S3FileSystem(
        access_key=KEY,
        secret_key=KEY,
        region=REGION,
        scheme="http",
        endpoint_override=address,
        allow_bucket_creation=True,
    )
    filesystem.create_dir(BUCKET)
    return Place(
        root=BUCKET,
        filesystem=filesystem,
        scheme="s3://",
        lance_options={
            "aws_access_key_id": KEY,
            "aws_secret_access_key": KEY,
            "aws_region": REGION,
            "aws_endpoint": f"http://{address}",
            "allow_http": "true",
        },
    )


def cases(place: Place, raw: Raw, rows: int, requests: Callable[[], int]) -> Iterator[Figure]:
    """Scan and draw over S3, then fill a node's row cache from there."""
    raw_object = f"{BUCKET}/raw.bin"
    with place.filesystem.open_output_stream(raw_object) as sink:
        sink.write(raw.path.read_bytes())

    def get(size: int) -> None:
        with place.filesystem.open_input_file(raw_object) as source:
            source.read(size)

    limit = best(partial(get, raw.total), 3)
    draw_limit = best(partial(get, raw.total * DRAW_ROWS // rows), 3)
    table = make_table(rows)
    for form in formats():
        if form is ARROW:
            continue
        form.write(table, place)
        yield from rates(f"scan {form.name}", scan_seconds(form, place, 2), limit, raw)
        # One draw to open what stays open, one to measure: each takes seconds here.
        take, (first, second) = form.open(place), draws(rows, 2)
        take(first)
        before = requests()
        yield Figure(f"random {form.name}", take_ms(take, [second]), "ms", draw_limit * 1000)
        yield Figure(f"requests a draw {form.name}", requests() - before, "GETs", DRAW_ROWS)
    target, before = raw.path.parent / "rows", requests()
    build = partial(storage.RowCache, place.uri(RECORD.name), target, storage.TRAINABLE)
    yield from rates("build row-cache", timed(build), limit, raw)
    yield Figure("requests to build row-cache, once a node", requests() - before, "GETs")


def measure(rows: int) -> Iterator[Figure]:
    """Measure every case on a fresh S3 double."""
    with tempfile.TemporaryDirectory(prefix="cloud-storage-") as directory:
        raw, log = make_raw(make_table(rows), Path(directory)), Path(directory) / "s3.log"
        with s3_double(log) as place:
            yield from cases(place, raw, rows, lambda: log.read_text().count("GET /"))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    if options.rows < DRAW_ROWS:
        parser.error(f"--rows {options.rows} is too few; choose at least {DRAW_ROWS}")
    if not importlib.util.find_spec("moto"):
        print("moto is missing, nothing measured: pip install '.[benchmarks]'", file=sys.stderr)
        return
    report(measure(options.rows), options.json)


if __name__ == "__main__":
    main()
