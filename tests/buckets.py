"""An S3 server on loopback, and a bucket in it."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from ray_reid.places import BucketPath

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Nothing on this machine may answer instead.
    "AWS_EC2_METADATA_DISABLED": "true",
}
SERVE = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


@contextmanager
def served() -> Iterator[None]:
    """Point this process and its children at a server of moto's; ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = dict(os.environ)
    os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            _wait(port)
            yield
        finally:
            server.terminate()
            for name in (*KEYS, "AWS_ENDPOINT_URL"):
                os.environ.pop(name, None)
            os.environ.update({n: before[n] for n in (*KEYS, "AWS_ENDPOINT_URL") if n in before})


def new_bucket() -> BucketPath:
    """Make a bucket of the server."""
    import boto3

    name = f"runs-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return BucketPath("s3", name)


def _wait(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, "the S3 server does not start"
            time.sleep(0.1)
        else:
            return
