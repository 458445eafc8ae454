"""What a power failure may leave of a directory: all that was synced, and any part of the rest.

A `Disk` looks at a whole directory before and after every call that changes it or syncs, so that
it sees the writes of native code too. A file keeps every content, and a name everything that it
stood for, since it was last synced; each may be what the failure leaves, and a file may be torn
between two of them. Syncing a file says nothing of its name, which its directory must sync.
"""

import hashlib
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("replace", "unlink", "link", "mkdir", "ftruncate", "pwrite", "write")
# Up to so many combinations of what is left are all tried; of more, those that differ by one, and
# some at random.
ALL = 32
RANDOM = 8

Site = tuple[str, int]
"""File and line of a call that syncs."""


@dataclass
class Inode:
    """A file or a directory, by what it was since it was last synced, the oldest first."""

    contents: list[bytes] = field(default_factory=list)
    names: dict[str, list[int | None]] = field(default_factory=dict)
    is_folder: bool = False


@dataclass(frozen=True)
class Moment:
    """A moment at which the power may fail, and what must be true of each directory then."""

    inodes: dict[int, tuple[bool, tuple[bytes, ...], dict[str, tuple[int | None, ...]]]]
    promise: dict[str, Any]


class Disk:
    """A directory whose changes are recorded."""

    def __init__(self, root: Path, ignored: str) -> None:
        """Watch a directory; files named `ignored` need not survive."""
        self.root, self.ignored = root, ignored
        self.promise: dict[str, Any] = {}
        self.moments: list[Moment] = []
        self.skipped = 0
        self._inodes: dict[int, Inode] = {}
        # An inode that is held open is not given to another file.
        self._held: dict[int, int] = {}
        self._number = root.stat().st_ino
        self.settle()

    def settle(self) -> None:
        """Bring everything to the disk, as a system does by itself after some seconds."""
        self._observe()
        for inode in self._inodes.values():
            self._settle(inode)

    @contextmanager
    def recording(self, patch: pytest.MonkeyPatch, skip: Site | None = None) -> Iterator[None]:
        """Record; the sync that is called at `skip` does nothing."""
        real = {name: getattr(os, name) for name in CHANGES}

        def changing(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                self.look()
                try:
                    return real[name](*arguments, **options)
                finally:
                    self.look()

            return call

        def sync(descriptor: int) -> None:
            self.look()
            if skip is not None and _called_at(skip):
                self.skipped += 1
                return
            inode = self._inodes.get(os.fstat(descriptor).st_ino)
            if inode is not None:
                self._settle(inode)
            self.look()

        with patch.context() as patched:
            for name in CHANGES:
                patched.setattr(os, name, changing(name))
            patched.setattr(os, "fsync", sync)
            try:
                yield
            finally:
                self.look()
        for descriptor in self._held.values():
            os.close(descriptor)

    def look(self) -> None:
        """Note what there is, as a moment at which the power may fail."""
        self._observe()
        inodes = {
            number: (
                inode.is_folder,
                tuple(inode.contents),
                {name: tuple(past) for name, past in inode.names.items()},
            )
            for number, inode in self._inodes.items()
        }
        self.moments.append(Moment(inodes, self.promise))

    def broken(self, scratch: Path, judge: Callable[[Path, Any], str | None]) -> str | None:
        """Leave what failures at every moment may leave, and judge it; the first that is wrong.

        Each directory that something is promised of is judged alone, and once if it is the same.
        """
        known: set[tuple[str, bytes, int]] = set()
        for place, moment in enumerate(self.moments):
            for left in _leavings(moment):
                tree = _tree(self._number, left)
                for name, promised in moment.promise.items():
                    inner = _inner(tree, name)
                    mark = name, hashlib.sha256(repr(inner).encode()).digest(), id(promised)
                    if mark in known:
                        continue
                    known.add(mark)
                    at = scratch / str(len(known))
                    if inner is not None:
                        _write(inner, at)
                    wrong = judge(at, promised)
                    if wrong is not None:
                        return f"moment {place} of {len(self.moments)}, {name} in {at}: {wrong}"
        return None

    def _observe(self) -> None:
        waiting = [self.root]
        while waiting:
            path = waiting.pop()
            inode = self._inode(path)
            now: dict[str, int | None] = {}
            for entry in os.scandir(path):
                if entry.name == self.ignored:
                    continue
                now[entry.name] = entry.inode()
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                else:
                    file = self._inode(Path(entry.path))
                    content = Path(entry.path).read_bytes()
                    if file.contents[-1] != content:
                        file.contents.append(content)
            for name in now.keys() | inode.names.keys():
                past = inode.names.setdefault(name, [None])
                if past[-1] != now.get(name):
                    past.append(now.get(name))

    def _inode(self, path: Path) -> Inode:
        number = path.stat().st_ino
        if number not in self._inodes:
            self._held[number] = os.open(path, os.O_RDONLY)
            self._inodes[number] = Inode([b""], {}, path.is_dir())
        return self._inodes[number]

    @staticmethod
    def _settle(inode: Inode) -> None:
        inode.contents = inode.contents[-1:]
        inode.names = {name: past[-1:] for name, past in inode.names.items() if past[-1]}


def _called_at(site: Site) -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if (frame.f_code.co_filename, frame.f_lineno) == site:
            return True
        frame = frame.f_back
    return False


Left = dict[int, bytes | dict[str, int | None]]


def _leavings(moment: Moment) -> Iterator[Left]:
    """What a failure may leave, inode by inode."""
    items: list[tuple[int, str]] = []
    choices: list[Sequence[Any]] = []
    for number, (is_folder, contents, names) in moment.inodes.items():
        if not is_folder:
            items.append((number, ""))
            choices.append(_torn(contents))
        for name, past in names.items():
            items.append((number, name))
            choices.append(list(dict.fromkeys(past)))
    for chosen in _combinations(choices):
        left: Left = {number: {} for number, (is_folder, *_) in moment.inodes.items() if is_folder}
        for (number, name), value in zip(items, chosen, strict=True):
            if name:
                left[number][name] = value
            else:
                left[number] = value
        yield left


@cache
def _torn(contents: tuple[bytes, ...]) -> list[bytes]:
    """All contents, and mixtures of each with the one before it: halves, and zeros.

    Bytes that both begin with were not written, or as they were.
    """
    found = list(contents)
    for old, new in itertools.pairwise(contents):
        same = (
            place for place, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]
        )
        start = next(same, min(len(old), len(new)))
        middle = (start + len(new)) // 2
        found += [
            new[:middle],
            new[:middle] + old[middle:],
            new[:start] + bytes(len(new) - start),
            new[:start] + bytes(middle - start) + new[middle:],
        ]
    return list(dict.fromkeys(found))


def _combinations(choices: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    count = 1
    for some in choices:
        count *= len(some)
    if count <= ALL:
        yield from itertools.product(*choices)
        return
    for others in (0, -1):
        rest = [some[others] for some in choices]
        yield tuple(rest)
        for place, some in enumerate(choices):
            for one in some if len(some) > 1 else ():
                yield (*rest[:place], one, *rest[place + 1 :])
    chance = random.Random(0)
    for _ in range(RANDOM):
        yield tuple(chance.choice(some) for some in choices)


Tree = dict[str, Any]


def _tree(number: int, left: Left) -> Any:
    content = left[number]
    if isinstance(content, bytes):
        return content
    return {name: _tree(at, left) for name, at in sorted(content.items()) if at is not None}


def _inner(tree: Tree, name: str) -> Tree | None:
    found: Tree | None = tree
    for part in Path(name).parts:
        found = None if found is None else found.get(part)
    return found


def _write(tree: Tree, path: Path) -> None:
    path.mkdir(parents=True)
    for name, inner in tree.items():
        if isinstance(inner, bytes):
            (path / name).write_bytes(inner)
        else:
            _write(inner, path / name)
