"""Files of weights as people save and publish them: tensors by name, and no code of a file runs."""

import pickle
import pickletools
import struct
import tarfile
import zipfile
import zlib

# What Python 2 called the built-in classes, which pickles of torch.save still do.
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = ("model", "state_dict", "model_state_dict", "teacher")
"""Where checkpoints keep the weights, beside the state of the training."""
PREFIXES = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into the name of a weight, anywhere."""
MODEL = "model."
"""What trainers put before every name."""

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save began before PyTorch 1.6: four pickles in a row, then the values."""
ZIP, PICKLES = b"PK", tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
HEADS = (
    (
        b"version https://git-lfs.github.com",
        "is a Git LFS pointer, not the weights it stands for; fetch them with `git lfs pull`",
    ),
    (b"\x1f\x8b", "is a gzip archive; unpack it and give the file inside"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes it; give weights of PyTorch"),
)
UNSAFE = (
    "is more than tensors and plain values, and a pickle could run any code: load it where you "
    "trust it, and save its state dict alone"
)
BROKEN = (
    pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, zlib.error, struct.error, OSError,
    EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError,
    ArithmeticError, MemoryError,
)  # fmt: skip
"""What readers raise for a file that is damaged, or made to do harm."""


class Unread:
    """Stands for any object that is no tensor: its class is not imported, its state not kept."""

    def __init__(self, *_: Any) -> None:
        """Forget the arguments."""

    def __setstate__(self, _: Any) -> None:
        """Forget the state."""


class UnreadMapping(Unread):
    """Stands for subclasses of dict, such as configurations: their items are kept, in a dict."""

    def __new__(cls, *_: Any) -> Any:
        """Give a dictionary of a type that torch.load fills."""
        return OrderedDict()


class UnreadList(Unread):
    """Stands for subclasses of list, and for deques: their items are kept, in a list."""

    def __new__(cls, *_: Any) -> Any:
        """Give a list."""
        return []


MARK = "("
"""On the stack of a pickle: here begin the items of the next object."""
MADE_OF_FIRST = ("REDUCE", "NEWOBJ", "BUILD", "SETITEM", "SETITEMS", "APPEND", "APPENDS")
"""Operations of a pickle whose result is the lowest thing that they take, or an object of it."""
FILLED = {"SETITEM": UnreadMapping, "SETITEMS": UnreadMapping, "APPEND": UnreadList,
          "APPENDS": UnreadList}  # fmt: skip
"""What stands for a class, by the operation of a pickle that fills its objects."""


def load(file: Path) -> Any:
    """Read all of a file: tensors and plain values as saved, other objects as `Unread`.

    Args:
        file: Of safetensors or torch.save, old or new, whatever its name ends in.

    Raises:
        ValueError: If it is neither, or damaged. The message goes on after the file's name.
    """
    head = _head(file)
    _refuse_by_head(file, head)
    with _refusing_damage():
        if head.startswith((ZIP, LEGACY)):
            # Objects that checkpoints hold beside the weights, NumPy's numbers first of all.
            skipped = torch.serialization.safe_globals(
                [(stand_in, name) for name, stand_in in _classes(file).items()]
            )
            # Of a path, torch.load believes what the name ends in.
            with skipped, file.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
        return load_file(file)


def weights(found: Any) -> dict[str, Tensor]:
    """The tensors by name in what was loaded, without wrappers and the prefixes of trainers.

    Raises:
        ValueError: If there are none. The message goes on after the file's name.
    """
    while isinstance(found, Mapping):
        inner = [found[key] for key in WRAPPERS if _holds_tensors(found.get(key))]
        if not inner:
            break
        found = inner[0]
    if isinstance(found, Unread):
        raise ValueError(f"is a whole pickled model: it {UNSAFE}")
    if not isinstance(found, Mapping):
        raise ValueError(f"holds a {type(found).__name__}, not a state dict")
    tensors = {
        name: value
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(f"holds no weights by name, under {list(WRAPPERS)} or by itself")
    return _bare(tensors)


def _holds_tensors(value: Any) -> bool:
    """Whether a mapping has tensors, at any depth: under `model` may be a configuration."""
    inside = value.values() if isinstance(value, Mapping) else ()
    return any(isinstance(one, Tensor) or _holds_tensors(one) for one in inside)


def read(file: Path) -> dict[str, Tensor]:
    """The weights of a file by name, without wrappers and the prefixes of trainers.

    Raises:
        ValueError: If it holds none. The message goes on after the file's name.
    """
    return weights(load(file))


def check_finite(given: Mapping[str, Tensor]) -> None:
    """Refuse weights that would make every feature a NaN.

    Raises:
        ValueError: If a value is not finite. The message goes on after the file's name.
    """
    broken = [name for name, value in given.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"has values that are not finite in {len(broken)} of its {len(given)} weights, as of a "
            f"training that diverged: {some(broken)}"
        )


def first_line(error: BaseException) -> str:
    """The first line of an error, after its type where the line is a bare key, word or number."""
    line = next(iter(str(error).strip().splitlines()), "")
    name = type(error).__name__
    if isinstance(error, LookupError) or (line and " " not in line):
        return f"{name}: {line}"
    return line or name


def some(names: Iterable[str], shown: int = 8) -> str:
    """The first of some names, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - shown} more" if len(known) > shown else ""
    return f"{known[:shown]}{more}"


@contextmanager
def _refusing_damage() -> Iterator[None]:
    """Turn what readers raise for a damaged file into one sentence that goes on after its name."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(UNSAFE) from error
    except BROKEN as error:
        raise ValueError(
            f"cannot be read: {first_line(error)}; was it downloaded whole?"
        ) from error


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers have put into them, in whatever order they wrapped."""
    names = {
        name: ".".join(part for part in name.split(".") if part not in PREFIXES) for name in tensors
    }
    while all(name.startswith(MODEL) for name in names.values()):
        names = {name: bare.removeprefix(MODEL) for name, bare in names.items()}
    if len(set(names.values())) < len(names):
        raise ValueError(f"holds weights twice, with the prefixes {list(PREFIXES)} and without")
    return {names[name]: value for name, value in tensors.items()}


def _head(file: Path) -> bytes:
    if file.is_dir():
        raise ValueError("is a folder; give the file of weights inside")
    try:
        with file.open("rb") as stream:
            return stream.read(512)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def _refuse_by_head(file: Path, head: bytes) -> None:
    """Say what a file is that holds no weights, where its first bytes tell."""
    if not head:
        raise ValueError("is empty: zero bytes")
    for start, sentence in HEADS:
        if head.startswith(start):
            raise ValueError(sentence)
    if head.lstrip().lower().startswith(PAGES):
        raise ValueError("is a web page, not weights: the download was refused or needs a login")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        first = head.decode("ascii").strip().partition("\n")[0]
        raise ValueError(f"is text, not weights; it begins with {first[:60]!r}")
    if head.startswith(PICKLES) and not head.startswith(LEGACY):
        raise ValueError(f"was not written by torch.save: it {UNSAFE}")
    if tarfile.is_tarfile(file):
        raise ValueError("is a tar archive; unpack it and give the file inside")
    if head.startswith(ZIP):
        with _refusing_damage():
            inside = _members(file)
        if inside is None:
            raise ValueError("is cut short: its end, where its contents are listed, is missing")
        if "data.pkl" not in inside:
            raise ValueError("is a zip archive without weights of torch.save")
        if "constants.pkl" in inside:
            raise ValueError("is a TorchScript program; save the state dict of its module")


def _members(file: Path) -> set[str] | None:
    """Names of the files in a zip archive, without folders; None if its list is missing."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        return {name.rpartition("/")[2] for name in archive.namelist()}


def _classes(file: Path) -> dict[str, type[Unread]]:
    """What the pickles of a file refer to, found without unpickling: names, and their stand-ins."""
    with file.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            return {name: kind for _ in range(4) for name, kind in _referred(stream).items()}
        with zipfile.ZipFile(stream) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            return _referred(BytesIO(archive.read(name)))


def _referred(stream: BinaryIO) -> dict[str, type[Unread]]:
    """Classes of one pickle; its stack is followed to see which of their objects are filled."""
    found: dict[str, type[Unread]] = {}
    # A class and its objects are its name, all else is None.
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument))
            continue
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
            continue
        if pickletools.markobject in opcode.stack_before:
            while stack.pop() != MARK:
                pass
            taken = opcode.stack_before.index(pickletools.markobject)
        else:
            taken = len(opcode.stack_before)
        popped = [stack.pop() for _ in range(taken)]
        left: Any = popped[-1] if popped and opcode.name in MADE_OF_FIRST else None
        if opcode.name == "GLOBAL":
            left = _renamed(str(argument))
            found.setdefault(left, Unread)
        elif opcode.name == "MARK":
            left = MARK
        elif left is not None and opcode.name in FILLED:
            found[left] = FILLED[opcode.name]
        stack += [left] * len(opcode.stack_after)
    return found


def _renamed(reference: str) -> str:
    """The dotted name of `module name`, as torch.load looks it up: not as Python 2 has it."""
    module, _, name = reference.partition(" ")
    return ".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))
