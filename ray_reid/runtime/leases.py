"""A lease in a bucket: an object with its owner's name, which the owner renews.

Buckets have no locks, but they can be told to write an object only if there is none, or only if it
is still the one that was read. `pyarrow.fs` cannot say so; boto3 can.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

from ray_reid.places import BucketPath

log = logging.getLogger(__name__)

LEASE = ".lease.json"
RENEWAL_SECONDS, LEASE_SECONDS = 20.0, 90.0
"""How often an owner renews it, and how old it may be before somebody else takes it."""
CLOCK_SLACK_SECONDS = 60.0
"""How far the clock of this machine may be wrong where the store's own is not told."""


@dataclass(frozen=True)
class Found:
    """A lease as it was read."""

    content: bytes
    tag: str
    """By which the store knows this writing of it; no two have the same content."""
    age: float
    """Seconds since it was written, by the clock of the store."""


class LeaseStore(Protocol):
    """An object that is written only if it is still what its writer believes."""

    def read(self) -> Found | None:
        """Return the object, if there is one."""

    def write(self, content: bytes, tag: str | None) -> str | None:
        """Replace the object of a tag, or make one; None, and nothing written, if it is another."""

    def delete(self) -> None:
        """Remove the object."""


@contextmanager
def leased(path: BucketPath) -> Iterator[Callable[[], None]]:
    """Hold the lease of a run while the block runs; yields what raises once it is lost.

    Raises:
        ValueError: If somebody else has it, or the bucket cannot be written.
    """
    with _explained(path):
        lease = _Lease(path, _store(path))
    over = threading.Event()
    renewing = threading.Thread(target=lease.renew, args=(over,), daemon=True)
    renewing.start()
    try:
        yield lease.check
    finally:
        over.set()
        renewing.join()
        lease.release()


def owner(path: BucketPath) -> str | None:
    """Return the name of who holds the lease of a run, if somebody does."""
    with _explained(path):
        found = _store(path).read()
    return None if found is None or _is_dead(found) else _owner(found)


class _Lease:
    def __init__(self, path: BucketPath, store: LeaseStore) -> None:
        self._path, self._store = path, store
        self._token, self._number = uuid.uuid4().hex, 0
        self._lost = False
        found = store.read()
        if found is not None and not _is_dead(found):
            left = LEASE_SECONDS - found.age
            raise ValueError(
                f"{_owner(found)} is already working on run {str(path)!r}; should it be dead, its "
                f"lease ends in {left:.0f} s"
            )
        if found is not None:
            log.warning("%s no longer renews its lease of %s: taken over", _owner(found), path)
        self._tag = None if found is None else found.tag
        self._write()
        if self._lost:
            raise ValueError(f"another driver has just begun to work on run {str(path)!r}")

    def _write(self) -> None:
        """Write the lease if it is as this driver knows it; else it is lost."""
        started = _now()
        self._number += 1
        tag = self._store.write(self._content(), self._tag)
        if tag is None:
            # The answer to an earlier try may have been lost on its way.
            found = self._store.read()
            tag = found.tag if found is not None and self._is_mine(found) else None
        self._lost = tag is None
        if tag is not None:
            self._tag, self._written = tag, started

    def renew(self, over: threading.Event) -> None:
        # Late is not too late: the store refuses what another driver has written meanwhile.
        while not over.wait(RENEWAL_SECONDS) and not self._lost:
            try:
                self._write()
            except Exception as error:  # noqa: BLE001
                # A network has many ways to fail, and the next try may be in time.
                log.warning("cannot renew the lease of %s: %s", self._path, error)

    def check(self) -> None:
        if self._is_lost():
            raise ValueError(
                f"the lease of run {str(self._path)!r} is lost: it was not renewed in time, or "
                "another driver has it; what is done is kept, and the same command goes on"
            )

    def release(self) -> None:
        try:
            found = self._store.read()
            if found is not None and self._is_mine(found):
                self._store.delete()
        except Exception as error:  # noqa: BLE001
            # It ends by itself.
            log.warning("cannot give back the lease of %s: %s", self._path, error)

    def _is_lost(self) -> bool:
        return self._lost or _now() - self._written > LEASE_SECONDS

    def _is_mine(self, found: Found) -> bool:
        return self._token.encode() in found.content

    def _content(self) -> bytes:
        mine = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "machine": _machine(),
            "token": self._token,
            "number": self._number,
        }
        return json.dumps(mine).encode()


def _now() -> float:
    """Seconds that go on while the machine sleeps, where it tells them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _owner(found: Found) -> str:
    try:
        values = json.loads(found.content)
        return f"process {values['process']} on {values['host']}"
    except (ValueError, KeyError, TypeError):
        return "somebody"


def _is_dead(found: Found) -> bool:
    """Whether a lease has ended, or was that of a process of this machine that has."""
    if found.age > LEASE_SECONDS:
        return True
    try:
        values = json.loads(found.content)
        if values["machine"] != _machine() or not _machine():
            return False
        os.kill(int(values["process"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, PermissionError):
        return False
    return False


def _machine() -> str:
    """What tells this boot and its process numbers from all others; empty if nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _store(path: BucketPath) -> LeaseStore:
    bucket, _, key = (path / LEASE).key.partition("/")
    return (_GoogleStore if path.scheme == "gs" else _AmazonStore)(bucket, key)


class _AmazonStore:
    """S3, or what speaks its protocol."""

    def __init__(self, bucket: str, key: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ModuleNotFoundError:
            raise ValueError(
                "a run in s3:// needs boto3 for its lease: pip install 'ray-reid[s3]'"
            ) from None
        # All tries together take less time than a lease lasts.
        tries = {"total_max_attempts": 2, "mode": "standard"}
        quick = Config(connect_timeout=5, read_timeout=15, retries=tries)
        # It reads endpoint, region and credentials from the environment as `places` does.
        self._client: Any = boto3.client("s3", config=quick)
        self._where = {"Bucket": bucket, "Key": key}

    def read(self) -> Found | None:
        try:
            answer = self._client.get_object(**self._where)
        except self._client.exceptions.NoSuchKey:
            return None
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        age = (now - answer["LastModified"]).total_seconds()
        return Found(answer["Body"].read(), answer["ETag"], age)

    def write(self, content: bytes, tag: str | None) -> str | None:
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            answer = self._client.put_object(**self._where, Body=content, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in _ANOTHER:
                return None
            raise
        return str(answer["ETag"])

    def delete(self) -> None:
        self._client.delete_object(**self._where)


_ANOTHER = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409")


class _GoogleStore:
    """Google Cloud Storage, whose generations are the tags."""

    def __init__(self, bucket: str, key: str) -> None:
        try:
            from google.cloud import storage
        except ModuleNotFoundError:
            raise ValueError(
                "a run in gs:// needs google-cloud-storage for its lease: "
                "pip install google-cloud-storage"
            ) from None
        self._bucket, self._key = storage.Client().bucket(bucket), key

    def read(self) -> Found | None:
        from google.api_core.exceptions import NotFound

        blob: Any = self._bucket.get_blob(self._key, timeout=30)
        if blob is None:
            return None
        try:
            content = blob.download_as_bytes(if_generation_match=blob.generation, timeout=30)
        except NotFound:
            return None
        # The library does not hand on the time of the store; this machine's may be wrong.
        age = time.time() - blob.updated.timestamp() - CLOCK_SLACK_SECONDS
        return Found(content, str(blob.generation), max(0.0, age))

    def write(self, content: bytes, tag: str | None) -> str | None:
        from google.api_core.exceptions import PreconditionFailed

        blob: Any = self._bucket.blob(self._key)
        generation = 0 if tag is None else int(tag)
        try:
            blob.upload_from_string(content, if_generation_match=generation, timeout=30)
        except PreconditionFailed:
            return None
        return str(blob.generation)

    def delete(self) -> None:
        self._bucket.blob(self._key).delete(timeout=30)


@contextmanager
def _explained(path: BucketPath) -> Iterator[None]:
    """Turn what a cloud's library raises into one sentence."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"cannot use the lease of run {str(path)!r}: {error}") from error
