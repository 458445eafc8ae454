"""Files of weights as people save them: taken, or named for what they are in one sentence."""

import argparse
import gzip
import io
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ray_reid.models.pretrained import weight_files

WEIGHTS = {"bn.weight": torch.tensor([1.0, 2.0]), "bn.bias": torch.tensor([3.0])}


class Config(dict[str, Any]):
    """As yacs' CfgNode: a dictionary with a state beside its items."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.frozen = True


def _prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in WEIGHTS.items()}


def _saved(value: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **how)
    return stream.getvalue()


def _of_python_2() -> bytes:
    """The same file with bytes for text, as Python 2 wrote names."""
    found = _saved(WEIGHTS, _use_new_zipfile_serialization=False)
    for name in WEIGHTS:
        long = b"X" + len(name).to_bytes(4, "little") + name.encode()
        assert found.count(long) == 1
        found = found.replace(long, b"U" + len(name).to_bytes(1, "little") + name.encode())
    return found


@pytest.mark.parametrize(
    "found",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3, "rank1": np.array([0.5, 0.7], np.float32)[0]},
        {"state_dict": WEIGHTS, "curve": np.ones(3), "scores": {1: np.float64(0.5), 2: None}},
        {"model": None, "state_dict": WEIGHTS, "args": argparse.Namespace(lr=np.int64(1))},
        {"teacher": {"state_dict": WEIGHTS}, "student": None},
        {"model": {"name": "resnet50"}, "state_dict": WEIGHTS},
        # Pickles have Python 2's names of these.
        {"model": WEIGHTS, "frozen": frozenset({1}), "rows": slice(3), "f": WEIGHTS.keys},
        {"state_dict": defaultdict(torch.zeros, WEIGHTS), "last": deque([1.0], maxlen=3)},
        {"model": WEIGHTS, "cfg": Config(lr=Config(base=1)), "log": defaultdict(list, a=[1, 2])},
        {**WEIGHTS, 1: torch.zeros(2), "epoch": 3},
        *(
            _prefixed(prefix)
            for prefix in (
                "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.",
                "module.module.", "model.module.model.",
            )
        ),
        {"bn._orig_mod.weight": WEIGHTS["bn.weight"], "bn.module.bias": WEIGHTS["bn.bias"]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_checkpoint_gives_its_weights_whatever_it_holds_beside(
    found: Any, zipped: bool, tmp_path: Path
) -> None:
    file = tmp_path / "model.pth.tar"
    file.write_bytes(_saved(found, _use_new_zipfile_serialization=zipped))
    read = weight_files.read(file)
    assert {name: value.tolist() for name, value in read.items()} == {
        "bn.weight": [1.0, 2.0],
        "bn.bias": [3.0],
    }


def test_the_contents_of_a_file_count_and_not_its_name(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.pth")
    (tmp_path / "model.safetensors").write_bytes(_saved(WEIGHTS))
    (tmp_path / "old").write_bytes(_of_python_2())
    for name in ("model.pth", "model.safetensors", "old"):
        assert set(weight_files.read(tmp_path / name)) == set(WEIGHTS)


class Payload:
    def __reduce__(self) -> Any:
        return (Path, ("executed",))


class Reader:
    def __setstate__(self, state: Any) -> None:
        raise AssertionError("executed")


def test_classes_of_a_checkpoint_are_not_even_imported(tmp_path: Path) -> None:
    reader = Reader()
    reader.value = 1  # type: ignore[attr-defined]
    (tmp_path / "x.pth").write_bytes(_saved({"model": WEIGHTS, "cfg": [Payload(), reader]}))
    found = weight_files.load(tmp_path / "x.pth")
    assert [type(value) for value in found["cfg"]] == [weight_files.Unread] * 2
    assert not vars(found["cfg"][1])
    (tmp_path / "x.pth").write_bytes(
        _saved({"model": WEIGHTS, "cfg": Config(lr=1, at=[Payload()])})
    )
    kept = weight_files.load(tmp_path / "x.pth")["cfg"]
    assert type(kept) is OrderedDict
    assert kept["lr"] == 1
    assert type(kept["at"][0]) is weight_files.Unread


def _zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return stream.getvalue()


def _damaged(mark: bytes, after: int, value: int, zipped: bool = True) -> bytes:
    """A file of weights with another byte somewhere after the last of some marks."""
    found = bytearray(_saved(WEIGHTS, _use_new_zipfile_serialization=zipped))
    found[found.rindex(mark) + after] = value
    return bytes(found)


def _tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"), io.BytesIO())
    return stream.getvalue()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: b"", "is empty: zero bytes"),
        (lambda: b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        (
            lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "is a Git LFS pointer, not the weights it stands for; fetch them with `git lfs pull`",
        ),
        (lambda: b'{"error": "not found"}\n', 'is text, not weights; it begins with \'{"error"'),
        (lambda: gzip.compress(_saved(WEIGHTS)), "is a gzip archive; unpack it"),
        (_tarred, "is a tar archive; unpack it"),
        (lambda: _zipped("weights.txt"), "is a zip archive without weights of torch.save"),
        (lambda: _zipped("m/data.pkl", "m/constants.pkl"), "is a TorchScript program; save the"),
        (lambda: b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (lambda: _saved(WEIGHTS)[:-100], "is cut short"),
        (lambda: _saved(WEIGHTS, _use_new_zipfile_serialization=False)[:300], "cannot be read: "),
        (lambda: bytes(range(255, 0, -1)), "cannot be read: "),
        # Damage: to the list of a zip archive, the version that it needs, the number of its disks.
        (lambda: _damaged(b"PK\x01\x02", 3, 0), "cannot be read: Bad magic number"),
        (lambda: _damaged(b"PK\x01\x02", 6, 200), "cannot be read: zip file version"),
        (lambda: _damaged(b"PK\x06\x07", 16, 9), "cannot be read: zipfiles that span"),
        # To what a pickle remembers by number, and to the number of bytes that it has.
        (lambda: _damaged(b"h\x03h", 1, 202, zipped=False), "cannot be read: KeyError: 202; was"),
        (lambda: _damaged(b"X\t\x00", 4, 255, zipped=False), "cannot be read: "),
        (lambda: pickle.dumps(WEIGHTS), "was not written by torch.save: .* could run any code"),
        (lambda: _saved(nn.Linear(2, 2)), "is a whole pickled model: .* save its state dict alone"),
        (lambda: _saved([1, 2]), "holds a list, not a state dict"),
        (lambda: _saved({1: torch.zeros(2)}), "holds no weights by name"),
        (lambda: _saved({"state_dict": {}}), "holds no weights by name"),
        (lambda: _saved({**WEIGHTS, **_prefixed("module.")}), "holds weights twice"),
    ],
)
def test_what_is_no_file_of_weights_is_said_in_one_sentence(
    make: Callable[[], bytes], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "x.pth").write_bytes(make())
    with pytest.raises(ValueError, match=f"^{sentence}") as refused:
        weight_files.read(tmp_path / "x.pth")
    assert len(str(refused.value).splitlines()) == 1


def test_places_without_a_file_are_named(tmp_path: Path) -> None:
    for place, sentence in (("", "is a folder"), ("none.pth", "cannot be read: No such file")):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            weight_files.read(tmp_path / place)


def test_weights_that_are_not_finite_are_named() -> None:
    weight_files.check_finite({"counter": torch.tensor(3), **WEIGHTS})
    with pytest.raises(ValueError, match=r"not finite in 1 of its 3 weights.*\['head'\]"):
        weight_files.check_finite({"head": torch.tensor([1.0, float("nan")]), **WEIGHTS})
