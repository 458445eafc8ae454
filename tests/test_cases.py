"""Troubles that users of re-identification tools have reported, each through the command line.

Each test is a situation somebody was in: files as they lay there, and the commands that were
typed. The kinds of fault behind them are tested beside the code.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy
import timm
import torch
from mlflow import MlflowClient
from PIL import Image

import ray_reid
from ray_reid import cli, storage
from ray_reid.runtime.results import RunState

Told = Callable[..., tuple[int, str]]
Save = Callable[[Image.Image, Path], None]
NAME = "{i:03d}_cam{c}_{n}.jpg"
FITS = "train.sampler={num_identities: 3, num_instances: 2}"
SMALL = (
    FITS,
    "train.backbone=resnet10t",
    "train.image_size=[32, 32]",
    "train.epochs=1",
    "train.precision=fp32",
    "train.cpus_per_worker=1",
    "evaluate.max_tsne=10",
)


def picture(identity: int, camera: int, number: int) -> Image.Image:
    """A crop: a body and a stripe of an identity's colours, before a camera's background."""
    looks = np.random.default_rng(identity)
    here = np.random.default_rng((identity, camera, number))
    pixels = np.full((48, 48, 3), 60 + 12 * camera, np.float32)
    x, y, stripe = *here.integers(0, 12, 2), looks.integers(8, 24)
    pixels[y : y + 36, x : x + 36] = looks.integers(0, 255, 3)
    pixels[y + stripe : y + stripe + 6, x : x + 36] = looks.integers(0, 255, 3)
    pixels += here.normal(0, 6, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def crops(
    root: Path,
    name: str = NAME,
    identities: Iterable[int] = range(1, 9),
    cameras: Iterable[int] = (1, 2),
    save: Save = Image.Image.save,
) -> Path:
    """Three crops of each identity by each camera."""
    for i in identities:
        for c in cameras:
            for n in (1, 2, 3):
                file = root / name.format(i=i, c=c, n=n)
                file.parent.mkdir(parents=True, exist_ok=True)
                save(picture(i, c, n), file)
    return root


def settings(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """A function that runs a command; its exit code, and all that it said."""

    def run(*words: object) -> tuple[int, str]:
        code = cli.main([str(word) for word in words])
        return code, "".join(capfd.readouterr())

    return run


def doctor(told: Told, root: Path, *changes: str) -> str:
    code, said = told("doctor", root, *settings(FITS, *changes))
    assert code in (0, cli.UNFIT)
    return said


def rows(said: str) -> dict[str, list[str]]:
    """The doctor's table: images, identities and cameras of each split."""
    return {
        split: numbers.split()
        for split, numbers in re.findall(r"^  (train|query|gallery) +(.+)$", said, re.M)
    }


def test_pictures_under_less_usual_suffixes(tmp_path: Path, told: Told) -> None:
    def save(image: Image.Image, file: Path) -> None:
        suffix, kind = {"1": (".jfif", "JPEG"), "2": (".tif", "TIFF"), "3": (".JPG", "JPEG")}[
            file.stem[-1]
        ]
        image.save(file.with_suffix(suffix), kind)

    said = doctor(told, crops(tmp_path, save=save))
    assert sum(int(numbers[0]) for numbers in rows(said).values()) == 48
    assert "all 48 images decode" in said
    (tmp_path / "001_cam1_9.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert "1 files" in (said := doctor(told, tmp_path))
    assert "are not read (1 .heic" in said


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing")])
def test_a_split_of_ones_own_in_folders(tmp_path: Path, told: Told, names: tuple[str, str]) -> None:
    crops(tmp_path / names[0], identities=range(1, 6))
    crops(tmp_path / names[1], identities=range(6, 9))
    said = rows(doctor(told, tmp_path))
    assert said == {
        "train": ["30", "5", "2"], "query": ["6", "3", "2"], "gallery": ["12", "3", "2"],
    }  # fmt: skip


def test_thermal_pictures_of_sixteen_bits(tmp_path: Path, told: Told) -> None:
    def save(image: Image.Image, file: Path) -> None:
        grey = np.asarray(image.convert("L")).astype(np.uint16)
        Image.fromarray((51_200 + 4 * grey).astype(np.uint16)).save(file)

    said = doctor(told, crops(tmp_path, NAME.replace("jpg", "png"), save=save))
    assert "48 images are 16-bit with little range" in said
    assert "and so 4 grey levels" in said


@pytest.mark.parametrize(
    ("name", "reader", "cameras"),
    [
        ("{i:04d}/{c}_{n}.jpg", "folder", "none"),
        ("cam{c}/{i:04d}/{n:04d}.jpg", "folder", "2"),
    ],
)
def test_labels_in_the_names_of_folders(
    tmp_path: Path, told: Told, name: str, reader: str, cameras: str
) -> None:
    said = doctor(told, crops(tmp_path, name))
    assert f"reader {reader}, pattern" in said
    assert {numbers[2] for numbers in rows(said).values()} == {cameras}
    code, refused = told("doctor", tmp_path, "--reader", "folder")
    assert code == cli.UNFIT
    assert "fits all" in refused


def test_a_tree_of_identities_in_folders_of_a_split(tmp_path: Path, told: Told) -> None:
    crops(tmp_path / "train", "{i:04d}/{c}_{n}.jpg", range(1, 6))
    crops(tmp_path / "test", "{i:04d}/{c}_{n}.jpg", range(6, 9))
    said = doctor(told, tmp_path)
    assert "reader imagefolder" in said
    assert rows(said)["train"][:2] == ["30", "5"]


def test_market_names_with_ten_cameras(tmp_path: Path, told: Told) -> None:
    name, cameras = "{i:04d}_c{c}s1_{n:06d}_00.jpg", (1, 2, 10, 11)
    crops(tmp_path / "bounding_box_train", name, range(1, 7), cameras)
    crops(tmp_path / "query", name, (7, 8), cameras)
    crops(tmp_path / "bounding_box_test", name.replace("_00", "_01"), (7, 8), cameras)
    said = doctor(told, tmp_path)
    assert "reader market1501" in said
    assert rows(said) == {
        "train": ["72", "6", "4"], "query": ["24", "2", "4"], "gallery": ["24", "2", "4"],
    }  # fmt: skip


def test_a_test_of_one_identity(tmp_path: Path, told: Told) -> None:
    crops(tmp_path / "train", identities=range(1, 7))
    for part, camera in (("query", 1), ("gallery", 2)):
        (tmp_path / part).mkdir()
        picture(7, camera, 1).save(tmp_path / part / f"007_cam{camera}_1.jpg")
    assert "so this is no test" in doctor(told, tmp_path)


def test_the_doctor_and_a_run_have_one_verdict(tmp_path: Path, told: Told) -> None:
    crops(tmp_path / "data")
    rule = "train.sampler.num_identities is 16 but only"
    code, said = told("doctor", tmp_path / "data")
    assert (code, rule in said) == (cli.UNFIT, True)
    begun = time.monotonic()
    code, said = told("run", "baseline", "--run", tmp_path / "r", "--data", tmp_path / "data")
    assert (code, rule in said) == (cli.MISTAKE, True)
    assert time.monotonic() - begun < 5
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A ResNet-18 as torchreid saves it: the backbone's names and a classifier."""
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=0)
    classifier = {"classifier.weight": torch.randn(8, 512), "classifier.bias": torch.zeros(8)}
    return {**network.state_dict(), **classifier}


def imported(told: Told, tmp_path: Path, saved: object) -> tuple[int, str]:
    file, package = tmp_path / "checkpoint.pth", tmp_path / "package"
    if isinstance(saved, bytes):
        file.write_bytes(saved)
    else:
        torch.save(saved, file)
    network = settings("train.backbone=resnet18")
    code, said = told("import", "--from", "torchreid", file, package, *network)
    assert "Traceback" not in said
    if code == 0:
        image = Image.fromarray(np.zeros((64, 32, 3), np.uint8))
        assert ray_reid.load(package).embed([image]).shape == (1, 512)
        shutil.rmtree(package)
    return code, said


def test_a_checkpoint_with_a_scalar_of_numpy(
    tmp_path: Path, told: Told, weights: dict[str, torch.Tensor]
) -> None:
    saved = {"state_dict": weights, "epoch": 3, "rank1": np.float32(0.5)}
    assert imported(told, tmp_path, saved)[0] == 0


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "module.module.", "model."])
def test_a_checkpoint_of_a_wrapped_network(
    tmp_path: Path, told: Told, weights: dict[str, torch.Tensor], prefix: str
) -> None:
    saved = {prefix + name: value for name, value in weights.items()}
    assert imported(told, tmp_path, saved)[0] == 0


def test_checkpoints_that_are_partly_or_wholly_something_else(
    tmp_path: Path, told: Told, weights: dict[str, torch.Tensor]
) -> None:
    saved = {"model_state_dict": weights, "classifier_state_dict": None}
    assert imported(told, tmp_path, saved)[0] == 0
    for odd in ({1: torch.zeros(2)}, b"", b"<!DOCTYPE html><html></html>"):
        code, said = imported(told, tmp_path, odd)
        assert code == cli.MISTAKE
        assert said.count("\n") == 1
        assert "checkpoint.pth" in said


def typed(
    path: Path, *changes: str, recipe: str = "baseline", data: Path | None = None
) -> list[str]:
    """The words of a run."""
    given = ["--data", str(data)] if data else []
    return ["run", recipe, "--run", str(path), *given, *settings(*changes)]


NAMELESS = """
import os, pwd
def nobody(*_):
    raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = nobody
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
"""
TYPED = """
import signal, sys
from ray_reid import cli
# Whatever starts the tests may ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(cli.main(sys.argv[1:]))
"""


def started(words: Sequence[str], log: Path, before: str = "") -> subprocess.Popen[bytes]:
    """A command in a process of its own, which writes what it says to a file."""
    with log.open("wb") as output:
        command = [sys.executable, "-c", before + TYPED, *words]
        return subprocess.Popen(command, stdout=output, stderr=output, process_group=0)


def test_a_user_without_a_name_and_a_home(tmp_path: Path) -> None:
    crops(tmp_path / "data")
    log = tmp_path / "log"
    words = ["doctor", str(tmp_path / "data"), *settings(FITS)]
    assert started(words, log, NAMELESS).wait(timeout=60) == 0, log.read_text()
    assert "training may start" in log.read_text()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crops(tmp_path_factory.mktemp("cases") / "street", "day/" + NAME)


@pytest.fixture(scope="module")
def run(data: Path, ray_local: None) -> Path:
    """A whole run of the drawn crops; a minute."""
    path = data.parent / "runs" / "r"
    assert cli.main(typed(path, *SMALL, data=data)) == 0
    return path


@pytest.mark.slow
def test_the_same_command_without_its_data(run: Path, told: Told) -> None:
    before = RunState.read(run)
    code, said = told(*typed(run))
    assert code == cli.MISTAKE
    assert "give the same data (--data), another --run, or --replace" in said
    assert RunState.read(run).keys == before.keys


@pytest.mark.slow
def test_a_camera_that_nothing_knows(run: Path, data: Path, told: Told) -> None:
    image = data / "day" / "001_cam1_1.jpg"
    code, said = told("search", run, image, "--camera", "street:9")
    assert code == cli.MISTAKE
    assert "camera 'street:9' is on no image of the gallery" in said
    assert "street:1" in said
    assert told("search", run, image, "--camera", "street:1")[0] == 0


@pytest.mark.slow
def test_which_file_is_it(run: Path, data: Path, told: Told) -> None:
    table = RunState.read(run).folder("ingest") / "observations"
    rows = storage.read(table, ["observation_id", "path", "split"]).to_pylist()
    tested = next(row for row in rows if row["split"] == "gallery")
    code, said = told("search", run, data / tested["path"], "-k", "3")
    assert code == 0
    assert tested["path"] in said
    code, said = told("show", run, tested["observation_id"], "--image", data.parent / "shown.png")
    assert code == 0
    assert tested["path"] in said


@pytest.mark.slow
def test_one_picture_in_four_forms(run: Path, data: Path, tmp_path: Path) -> None:
    model = ray_reid.load(RunState.read(run).folder("train") / "model")
    file = tmp_path / "a.png"
    Image.open(data / "day" / "001_cam1_1.jpg").save(file)
    opened = Image.open(file)
    forms = [file, file.read_bytes(), opened, np.asarray(opened)]
    found = model.embed(forms)
    assert np.allclose(found @ found[0], 1, atol=1e-5)


@pytest.mark.slow
def test_a_folder_of_runs_is_moved(run: Path, data: Path, tmp_path: Path, told: Told) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(run.parent, old)
    shutil.move(old, new)
    begun = RunState.read(new / "r").keys
    code, said = told(*typed(new / "r", *SMALL[:-1], "evaluate.max_tsne=11", data=data))
    assert code == 0, said
    assert not old.exists()
    assert RunState.read(new / "r").keys["train"] == begun["train"]


@pytest.mark.slow
def test_a_full_disk(data: Path, tmp_path: Path, ray_local: None, told: Told) -> None:
    words = typed(tmp_path / "runs" / "r", *SMALL, data=data)

    def full(connection: object, _: object) -> None:
        # As large as the file is, so that it cannot grow.
        connection.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", full)
    try:
        code, said = told(*words)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", full)
    assert code == cli.MISTAKE
    assert "full" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.slow
def test_three_runs_begin_at_once_in_a_new_folder(data: Path, tmp_path: Path) -> None:
    # The first job of each, which is where they meet.
    ingest = [sys.executable, Path(cli.__file__).parents[1] / "jobs" / "ingest.py"]
    logs = [tmp_path / f"{name}.log" for name in "abc"]
    processes = []
    for log in logs:
        words = ["--run", tmp_path / "runs" / log.stem, "--data", data, *settings(*SMALL)]
        with log.open("wb") as output:
            processes.append(subprocess.Popen([*ingest, *words], stderr=output))
    codes = [process.wait(timeout=300) for process in processes]
    assert codes == [0, 0, 0], "\n".join(log.read_text() for log in logs)
    assert set(statuses(tmp_path / "runs").values()) == {"FINISHED"}


def statuses(runs: Path) -> dict[str, str]:
    """What MLflow says of the runs and jobs in a folder of runs."""
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("baseline")
    assert experiment
    found = client.search_runs([experiment.experiment_id])
    return {run.info.run_name: run.info.status for run in found}


@pytest.mark.slow
def test_a_training_is_interrupted(data: Path, tmp_path: Path) -> None:
    path, log = tmp_path / "runs" / "r", tmp_path / "log"
    long = [change for change in SMALL if change != "train.epochs=1"]
    process = started(typed(path, *long, "train.epochs=2000", data=data), log)
    deadline = time.monotonic() + 240
    while not list(path.glob("train/*/ray/0/checkpoint_*")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    pressed = time.monotonic()
    # A terminal sends it to all processes of a command.
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == cli.INTERRUPTED, log.read_text()
    assert time.monotonic() - pressed < 20
    last = log.read_text().splitlines()[-1]
    assert last == "ray-reid: interrupted; the same command goes on from here"
    assert statuses(path.parent) == {"r": "KILLED", "ingest": "FINISHED", "train": "KILLED"}
