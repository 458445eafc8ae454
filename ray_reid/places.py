"""Places of runs: paths of a file system, and paths in a bucket that can do what runs ask of them.

A bucket is read and written through `pyarrow.fs`, as Ray Data and Ray Train do; its endpoint and
credentials come from the usual environment variables (docs/storage.md).
"""

import fcntl
import hashlib
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from urllib.parse import unquote

from pyarrow import fs

SCHEMES = ("s3", "gs")
FETCHED_SECONDS = 7 * 24 * 3600
# A server that does not answer must not be waited for in silence.
_CONNECT_SECONDS, _REQUEST_SECONDS = 10, 30


class Stat(NamedTuple):
    """What is known of an object, as `os.stat_result` calls it."""

    st_size: int
    st_mtime: float


@dataclass(frozen=True, order=True)
class BucketPath:
    """An object, or all objects that begin with it and a slash: what `pathlib.Path` is on a disk.

    It has the methods of `Path` that runs use. Folders need not be made, and nothing tells an empty
    one from none; what is written appears whole or not at all.
    """

    scheme: str
    key: str
    """Begins with the name of the bucket."""

    @property
    def filesystem(self) -> fs.FileSystem:
        """The client that reads and writes the bucket."""
        return _filesystem(self.scheme, self.key.partition("/")[0], os.getpid())

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str | PurePosixPath) -> "BucketPath":
        return BucketPath(self.scheme, f"{self.key}/{name}".rstrip("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """With its dot, as `Path` has it."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "BucketPath":
        """All but the last part; the bucket is its own."""
        return BucketPath(self.scheme, self.key.rpartition("/")[0] or self.key)

    @property
    def parents(self) -> tuple["BucketPath", ...]:
        """Every place that this one lies in, the nearest first."""
        above = self.parent
        return () if above == self else (above, *above.parents)

    def with_name(self, name: str) -> "BucketPath":
        """Another name in the same place."""
        return self.parent / name

    def relative_to(self, other: "BucketPath") -> PurePosixPath:
        """What leads here from another place above."""
        return PurePosixPath(self.key).relative_to(other.key)

    def resolve(self) -> "BucketPath":
        """Return this: a bucket has no other names for it."""
        return self

    def exists(self) -> bool:
        """Whether there is an object here or below."""
        return self._kind() is not fs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether there is an object."""
        return self._kind() is fs.FileType.File

    def is_dir(self) -> bool:
        """Whether there are objects below."""
        return self._kind() is fs.FileType.Directory

    def is_symlink(self) -> bool:
        """Return false: a bucket has none."""
        return False

    def stat(self) -> Stat:
        """Size and time of an object.

        Raises:
            FileNotFoundError: If there is none.
        """
        found = self._info()
        if found.type is fs.FileType.NotFound:
            raise FileNotFoundError(str(self))
        return Stat(found.size or 0, (found.mtime_ns or 0) / 1e9)

    def iterdir(self) -> Iterator["BucketPath"]:
        """What lies directly here; nothing if nothing is here."""
        return (BucketPath(self.scheme, found.path) for found in self._listed(recursive=False))

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Find places by a pattern such as `*/run.json`; each of its parts is of one level."""
        found: Iterable[BucketPath] = [self]
        *levels, last = pattern.split("/")
        for level in levels:
            found = [below for place in found for below in place._matching(level)]
        for place in found:
            # Only what has been listed is known to be there.
            for below in place._matching(last):
                if _is_pattern(last) or below.exists():
                    yield below

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """Find all objects below whose name fits a pattern."""
        for found in self._listed(recursive=True):
            place = BucketPath(self.scheme, found.path)
            if found.type is fs.FileType.File and fnmatchcase(place.name, pattern):
                yield place

    def read_bytes(self) -> bytes:
        """Return the bytes of an object.

        Raises:
            FileNotFoundError: If there is none.
        """
        with self.filesystem.open_input_file(self.key) as file:
            return bytes(file.read())

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the text of an object."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Write an object; one of that name is replaced."""
        # Ctrl-C reaches the main thread alone: there, it would complete an upload of nothing.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._upload, content).result()

    def _upload(self, content: bytes) -> None:
        with self.filesystem.open_output_stream(self.key) as file:
            file.write(content)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        """Write an object; one of that name is replaced."""
        self.write_bytes(text.encode(encoding))

    def touch(self) -> None:
        """Make an object new."""
        self.write_bytes(self.read_bytes() if self.exists() else b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object.

        Raises:
            FileNotFoundError: If there is none, unless that is well.
        """
        if self.is_file():
            self.filesystem.delete_file(self.key)
        elif not missing_ok:
            raise FileNotFoundError(str(self))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing."""

    def rmdir(self) -> None:
        """Do nothing."""

    def remove_all(self) -> None:
        """Remove every object below."""
        if self.is_dir():
            self.filesystem.delete_dir(self.key)

    def _matching(self, pattern: str) -> Iterator["BucketPath"]:
        if not _is_pattern(pattern):
            return iter([self / pattern])
        return (found for found in self.iterdir() if fnmatchcase(found.name, pattern))

    def _listed(self, recursive: bool) -> list[fs.FileInfo]:
        below = fs.FileSelector(self.key, recursive=recursive, allow_not_found=True)
        return list(self.filesystem.get_file_info(below))

    def _info(self) -> fs.FileInfo:
        return self.filesystem.get_file_info(self.key)

    def _kind(self) -> fs.FileType:
        return self._info().type


Place = Path | BucketPath
"""Where a run, a result or a table is."""


def place(text: str | Path | BucketPath) -> Place:
    """The place that a text names: a path, or a URI of a bucket.

    Raises:
        ValueError: If it names neither.
    """
    if isinstance(text, (Path, BucketPath)):
        return text
    scheme, found, key = text.partition("://")
    if found and scheme == "file" and key.startswith("/"):
        return Path(unquote(key))
    bucket = key.strip("/").partition("/")[0]
    wrong = scheme not in SCHEMES or not bucket or "?" in key or set(bucket) & set("@:")
    if not text or (found and wrong):
        known = ", ".join(f"{one}://BUCKET/..." for one in SCHEMES)
        # Without the password that somebody may have put before an @.
        told = re.sub(r"//.*@", "//", text)
        raise ValueError(
            f"{told!r} is not a place: give a path, or {known}; endpoint and credentials come "
            "from the environment"
        )
    return BucketPath(scheme, key.strip("/")) if found else Path(text)


def opened(where: Place) -> tuple[fs.FileSystem, str]:
    """The file system of a place, and what it is called there."""
    if isinstance(where, Path):
        return fs.LocalFileSystem(), str(where)
    return where.filesystem, where.key


def matching(where: Place, pattern: str) -> list[Place]:
    """List the places that fit a pattern, in the order of their names."""
    found: list[Place] = list(where.glob(pattern))
    return sorted(found, key=str)


def check(where: Place) -> None:
    """Refuse a bucket that cannot be read, before any work.

    Raises:
        ValueError: Says why.
    """
    if isinstance(where, Path):
        return
    try:
        bucket = BucketPath(where.scheme, where.key.partition("/")[0])
        if not bucket.is_dir():
            raise ValueError(f"there is no bucket {str(bucket)!r}, which {str(where)!r} names")
    except OSError as error:
        raise ValueError(f"cannot use {str(where)!r}: {error.strerror or error}") from error


def fetched(where: Place) -> Path:
    """A file or folder on this machine: itself, or a copy of what is in a bucket.

    A node keeps copies of what nothing changes, such as results, and finds them by the names,
    sizes and times of the objects.

    Raises:
        FileNotFoundError: If there is nothing.
    """
    if isinstance(where, Path):
        return where
    infos = where._listed(recursive=True) if where.is_dir() else [where._info()]
    files = [one for one in infos if one.type is fs.FileType.File]
    if not files:
        raise FileNotFoundError(str(where))
    stats = "\n".join(sorted(f"{one.path}:{one.size}:{one.mtime_ns}" for one in files))
    digest = hashlib.blake2b(f"{where}\n{stats}".encode(), digest_size=16).hexdigest()
    copies = node_cache() / "fetched"
    copies.mkdir(parents=True, exist_ok=True)
    target = copies / digest / where.name
    with (copies / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _forget(copies)
            aside = copies / f"{digest}.partial" / where.name
            for one in files:
                file = aside / one.path.removeprefix(where.key).lstrip("/")
                file.parent.mkdir(parents=True, exist_ok=True)
                fs.copy_files(one.path, str(file), where.filesystem, fs.LocalFileSystem())
            aside.parent.rename(target.parent)
        os.utime(target.parent)
    return target


@contextmanager
def written(where: Place) -> Iterator[Path]:
    """A folder on this machine to write into: the place itself, or one whose files go to a bucket.

    To a bucket they go, in the order of their names, when the block ends without an error.
    """
    if isinstance(where, Path):
        where.mkdir(parents=True, exist_ok=True)
        yield where
        return
    with tempfile.TemporaryDirectory(prefix="ray-reid-") as directory:
        yield Path(directory)
        for file in sorted(filter(Path.is_file, Path(directory).rglob("*"))):
            target = where / file.relative_to(directory).as_posix()
            fs.copy_files(str(file), target.key, fs.LocalFileSystem(), where.filesystem)


@contextmanager
def created(where: Place) -> Iterator[IO[bytes]]:
    """Open a binary file for writing; it appears when the block ends without an error."""
    if isinstance(where, Path):
        aside = where.with_name(f".{where.name}.{os.getpid()}")
        try:
            with aside.open("wb") as file:
                yield file
            aside.replace(where)
        finally:
            aside.unlink(missing_ok=True)
        return
    content = io.BytesIO()
    yield content
    where.write_bytes(content.getvalue())


def remove(where: Place) -> None:
    """Remove a file, or a folder with all that is in it; nothing if it is not there."""
    if isinstance(where, BucketPath):
        where.remove_all()
        where.unlink(missing_ok=True)
    elif where.is_dir() and not where.is_symlink():
        shutil.rmtree(where)
    else:
        where.unlink(missing_ok=True)


def write_text(file: Place, text: str) -> None:
    """Write a text file whole or not at all; a file of that name is replaced."""
    with created(file) as sink:
        sink.write(text.encode())


def node_cache() -> Path:
    """Where this node keeps copies: `RAY_REID_CACHE`, else the system's temporary folder."""
    default = Path(tempfile.gettempdir()) / f"ray-reid-rows-{os.getuid()}"
    return Path(os.environ.get("RAY_REID_CACHE", default))


def _is_pattern(part: str) -> bool:
    return bool(set(part) & set("*?["))


def _forget(copies: Path) -> None:
    """Remove what a killed copy left, and copies that nobody has asked for in a week."""
    for folder in filter(Path.is_dir, copies.iterdir()):
        old = time.time() - folder.stat().st_mtime > FETCHED_SECONDS
        if old or folder.suffix == ".partial":
            shutil.rmtree(folder)


# Of each process its own: those of a parent do not survive a fork.
@cache
def _filesystem(scheme: str, bucket: str, _process: int) -> fs.FileSystem:
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=_REQUEST_SECONDS))
    # boto3 reads the variable by itself; pyarrow does not.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
    )
