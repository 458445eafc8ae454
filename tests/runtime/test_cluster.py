"""What an environment may lack: a home, a name of the user, a short temporary folder."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from ray_reid.datasets import reading
from ray_reid.gallery import live
from ray_reid.models.pretrained import references
from ray_reid.recipe import recipes
from ray_reid.recipe.resources import Resources
from ray_reid.runtime.cluster import Cluster


def test_a_temporary_folder_too_long_for_sockets_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    long = tmp_path / ("x" * 60)
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with pytest.raises(ValueError, match="107 bytes at most; set RAY_TMPDIR") as raised:
        Cluster(Resources()).__enter__()
    assert str(long) in str(raised.value)
    # The nodes of a cluster have folders of their own.
    Cluster(Resources(), "ray://head:10001").__enter__()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    Cluster(Resources()).__enter__()


NAMELESS = """
import os, pwd
def nobody(*_):
    raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = nobody
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
from ray_reid import cli
raise SystemExit(cli.main(["run", "baseline", "--run", "r", "--set", "train.epochs=0"]))
"""


def test_commands_need_neither_a_name_of_the_user_nor_a_home(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NAMELESS], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "'train.epochs' is 0" in done.stderr


HOMES = [
    reading.folder,
    references.resolve,
    lambda path: live.of_recipe(recipes.load("baseline", None, [f"gallery.path={path}"]), Path()),
]


@pytest.mark.parametrize("read", HOMES, ids=["root of a source", "model", "gallery"])
def test_a_path_below_an_unknown_home_is_one_sentence(read: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="the home folder in '~no-such-user/x' is unknown"):
        read("~no-such-user/x")
