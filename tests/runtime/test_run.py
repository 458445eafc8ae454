"""The run directory: immutable results and one pointer, skipped when done, resumed when killed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_reid import cli, storage
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.view import UndeclaredError
from ray_reid.runtime.facts import Facts
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.results import Manifest, RunState
from ray_reid.runtime.run import Run, open_run


class Recorder:
    """A job that counts its calls and can be made to die half-way."""

    def __init__(self) -> None:
        self.calls = 0
        self.left: list[str] = []
        self.error: BaseException | None = None

    def __call__(self, work: Work) -> Facts:
        self.calls += 1
        self.left = sorted(path.name for path in work.out.iterdir())
        (work.out / "half").write_text("1")
        if self.error is not None:
            raise self.error
        (work.out / "whole").write_text("2")
        return Facts(metrics={"figure": 1.5})


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # One MLflow store for the module: creating its schema takes seconds.
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield


def _recipe(*overrides: str) -> Recipe:
    return recipes.load("baseline", None, list(overrides))


def _manifest(run: Path, job: str) -> Manifest:
    return RunState.read(run).manifest(job)


def _folder(run: Path, job: str) -> Path:
    return RunState.read(run).folder(job)


def _perform(path: Path, recipe: Recipe, *jobs: Job) -> Run:
    with open_run(path, recipe, prepare=lambda: None) as run:
        for job in jobs:
            run.perform(job)
        return run


def test_a_job_is_done_once_and_then_skipped(tmp_path: Path) -> None:
    work = Recorder()
    job = Job("train", work, sections=("train",))
    for _ in range(2):
        _perform(tmp_path / "r", _recipe(), job)
    assert work.calls == 1
    assert (_folder(tmp_path / "r", "train") / "whole").exists()
    manifest = _manifest(tmp_path / "r", "train")
    assert manifest.facts["metrics"] == {"figure": 1.5}
    assert manifest.recipe["train"]["epochs"] == _recipe().train.epochs


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad")])
def test_an_interrupted_job_is_not_current_and_goes_on_from_what_it_left(
    tmp_path: Path, error: BaseException
) -> None:
    work = Recorder()
    work.error = error
    job = Job("train", work, sections=("train",), scratch=("half",))
    with pytest.raises(type(error)):
        _perform(tmp_path / "r", _recipe(), job)
    assert not (tmp_path / "r" / "run.json").exists()
    work.error = None
    _perform(tmp_path / "r", _recipe(), job)
    assert work.left == ["half"]
    names = {path.name for path in _folder(tmp_path / "r", "train").iterdir()}
    assert names == {"whole", "manifest.json"}


def test_a_changed_recipe_redoes_the_job_and_what_needs_it_and_going_back_redoes_nothing(
    tmp_path: Path,
) -> None:
    first, second, other = Recorder(), Recorder(), Recorder()
    jobs = (
        Job("train", first, sections=("train",)),
        Job("embed", second, needs=("train",)),
        Job("index", other, sections=("index",)),
    )
    _perform(tmp_path / "r", _recipe(), *jobs)
    old = RunState.read(tmp_path / "r")
    _perform(tmp_path / "r", _recipe("train.epochs=99"), *jobs)
    assert (first.calls, second.calls, other.calls) == (2, 2, 1)
    assert RunState.read(tmp_path / "r").recipe.train.epochs == 99
    # What a reader had opened is there, to the last file.
    assert (old.folder("train") / "whole").exists()
    _perform(tmp_path / "r", _recipe(), *jobs)
    assert (first.calls, second.calls, other.calls) == (2, 2, 1)
    assert RunState.read(tmp_path / "r") == old


def test_what_was_made_from_an_older_result_leaves_in_the_same_write(tmp_path: Path) -> None:
    jobs = (
        Job("train", Recorder(), sections=("train",)),
        Job("embed", Recorder(), needs=("train",)),
        Job("evaluate", Recorder(), needs=("embed",)),
        Job("ingest", Recorder(), sections=("ingest",)),
    )
    path = tmp_path / "r"
    _perform(path, _recipe(), *jobs)
    # The pipeline is killed when the first job has moved.
    _perform(path, _recipe("train.epochs=99"), jobs[0])
    state = RunState.read(path)
    assert set(state.keys) == {"train", "ingest"}
    with pytest.raises(
        ValueError, match=r"has no current 'evaluate'; it has \['ingest', 'train'\]"
    ):
        state.folder("evaluate")
    with pytest.raises(
        ValueError, match="has no current 'embed' of this recipe, which 'evaluate' needs"
    ):
        _perform(path, _recipe("train.epochs=99"), jobs[2])


def test_what_another_recipe_made_leaves_before_it_is_made_anew(tmp_path: Path) -> None:
    ingest = Job("ingest", Recorder(), sections=("ingest",))
    train = Job("train", Recorder(), needs=("ingest",), sections=("train",))
    index = Job("index", Recorder(), needs=("ingest",), sections=("index",))
    path = tmp_path / "r"
    _perform(path, _recipe(), ingest, train, index)
    # A person runs one job alone: a run never shows figures of 4 epochs under a recipe of 99.
    _perform(path, _recipe("train.epochs=99"), ingest)
    assert set(RunState.read(path).keys) == {"ingest", "index"}
    _perform(path, _recipe(), ingest, train)
    assert set(RunState.read(path).keys) == {"ingest", "index", "train"}
    embed = Job("embed", Recorder(), needs=("train",), sections=("embed",))
    with pytest.raises(ValueError, match="has no current 'train' of this recipe, which 'embed'"):
        _perform(path, _recipe("train.epochs=99"), embed)


def test_a_result_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    jobs = (
        Job("train", first, sections=("train",)),
        Job("embed", second, needs=("train",)),
    )
    path = tmp_path / "r"
    _perform(path, _recipe(), *jobs)
    shutil.rmtree(_folder(path, "embed"))
    _perform(path, _recipe(), *jobs)
    assert (first.calls, second.calls) == (1, 2)
    assert (_folder(path, "embed") / "whole").exists()


def test_the_tables_of_a_run_are_those_in_folders_of_its_current_results(
    tmp_path: Path, publish_job: Callable[..., Path]
) -> None:
    old, new = (publish_job(tmp_path, "describe", key) for key in ("old", "new"))
    for folder in (old, new):
        storage.write(folder / "answers", pa.table({"observation_id": ["a"]}))
    # As the job describe keeps its descriptions, for people to mend.
    pq.write_table(pa.table({"upper": ["red"]}), new / "descriptions.parquet")
    assert RunState.read(tmp_path).tables() == {"describe/answers": new / "answers"}
    assert cli.main(["fingerprint", str(tmp_path)]) == 0


def test_a_format_that_is_raised_redoes_the_job(tmp_path: Path) -> None:
    work = Recorder()
    for number in (1, 1, 2):
        _perform(tmp_path / "r", _recipe(), Job("train", work, format=number))
    assert work.calls == 2


def test_a_release_does_not_redo_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Recorder()
    for release in ("1.0", "1.1"):
        monkeypatch.setattr("ray_reid.runtime.run.VERSION", release)
        _perform(tmp_path / "r", _recipe(), Job("train", work))
    assert work.calls == 1
    assert _manifest(tmp_path / "r", "train").version == "1.0"


def test_another_recipe_may_be_made_without_becoming_current(tmp_path: Path) -> None:
    work = Recorder()
    job = Job("train", work, sections=("train",))
    path = tmp_path / "r"
    with open_run(path, _recipe(), prepare=lambda: None) as run:
        current = run.perform(job)
        other = run.make(job, _recipe("train.epochs=99"), {})
    assert other.key != current.key
    assert (path / "train" / other.key / "whole").exists()
    assert RunState.read(path).keys == {"train": current.key}
    assert RunState.read(path).recipe == _recipe()


def test_a_run_of_an_older_layout_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "manifest.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("name: baseline\n")
    rule = r"was made by a release before 0.3 and lies in its layout; run its recipe again"
    with pytest.raises(ValueError, match=rule):
        _perform(tmp_path, _recipe())
    with pytest.raises(ValueError, match=rule):
        RunState.read(tmp_path)
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "is damaged"),
        ("[]", "has format \\[\\]; this release reads 1"),
        ('{"format": 99}', "has format 99; this release reads 1"),
        ('{"format": 1, "jobs": []}', r"is damaged: it has no \['current', 'recipe'\]"),
    ],
)
def test_a_pointer_that_cannot_be_read_is_told(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=rule):
        RunState.read(tmp_path)


def test_a_job_that_reads_what_it_has_not_declared_is_stopped(tmp_path: Path) -> None:
    def planted(work: Work) -> Facts:
        return Facts(metrics={"epochs": work.recipe.train.epochs, "seed": work.recipe.seed})

    with pytest.raises(UndeclaredError, match=r"job 'train' reads 'seed' of the recipe"):
        _perform(tmp_path / "r", _recipe(), Job("train", planted, sections=("train",)))
    assert not (tmp_path / "r" / "train").exists()
    _perform(tmp_path / "r", _recipe(), Job("train", planted, sections=("train", "seed")))


def test_what_outside_covers_may_be_read_and_is_not_part_of_the_key(tmp_path: Path) -> None:
    calls: list[int] = []

    def covered(work: Work) -> Facts:
        calls.append(work.recipe.seed)
        (work.out / "made").write_text("")
        return Facts()

    job = Job("ingest", covered, covered=("seed",), outside=lambda recipe: "files")
    for seed in (1, 2):
        _perform(tmp_path / "r", _recipe(f"seed={seed}"), job)
    assert calls == [1]


def test_resources_do_not_redo_a_job(tmp_path: Path) -> None:
    work = Recorder()
    job = Job("embed", work, sections=("embed", "train"))
    _perform(tmp_path / "r", _recipe(), job)
    faster = _recipe("embed.stage.actors=7", "train.loader_processes=3")
    _perform(tmp_path / "r", faster, job)
    assert work.calls == 1


def test_outside_files_are_part_of_the_key(tmp_path: Path) -> None:
    work, state = Recorder(), ["a"]
    job = Job("ingest", work, outside=lambda recipe: state[0])
    _perform(tmp_path / "r", _recipe(), job)
    state[0] = "b"
    _perform(tmp_path / "r", _recipe(), job)
    assert work.calls == 2


def test_a_job_without_its_input_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has no current 'train' of this recipe, which 'embed' needs; it has \[\]"
    ):
        _perform(tmp_path / "r", _recipe(), Job("embed", Recorder(), needs=("train",)))


def test_manifests_come_in_dataflow_order(tmp_path: Path) -> None:
    jobs = (
        Job("z_first", Recorder()),
        Job("m_second", Recorder(), needs=("z_first",)),
        Job("a_third", Recorder(), needs=("m_second", "z_first")),
    )
    run = _perform(tmp_path / "r", _recipe(), *jobs)
    assert [manifest.job for manifest in run.state.manifests()] == [
        "z_first",
        "m_second",
        "a_third",
    ]


def test_two_processes_cannot_hold_one_run(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "r", _recipe(), prepare=lambda: None),
        pytest.raises(ValueError, match=r"process \d+ is already working on run"),
        open_run(tmp_path / "r", _recipe(), prepare=lambda: None),
    ):
        pass


def test_a_run_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    readonly = tmp_path / "readonly"
    readonly.mkdir(mode=0o555)
    file = tmp_path / "file"
    file.write_text("")
    for path in (readonly, file / "run"):
        with pytest.raises(ValueError, match="cannot write to run directory"):
            _perform(path, _recipe())
    assert not list(readonly.iterdir())


def test_mlflow_has_a_parent_with_the_recipe_and_a_child_with_the_metrics(tmp_path: Path) -> None:
    import os

    from mlflow import MlflowClient

    recipe = _recipe("train.epochs=4")
    _perform(tmp_path / "named", recipe, Job("train", Recorder(), sections=("train",)))
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    known = json.loads((tmp_path / "named" / ".mlflow.json").read_text())
    key = _manifest(tmp_path / "named", "train").key
    parent, child = (client.get_run(known[name]) for name in ("pipeline", f"train-{key}"))
    assert parent.info.run_name == "named"
    assert parent.data.params["train.epochs"] == "4"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.metrics == {"figure": 1.5}
    assert {parent.info.status, child.info.status} == {"FINISHED"}


def test_a_job_killed_before_it_was_pointed_at_is_not_done_again(tmp_path: Path) -> None:
    work = Recorder()
    job = Job("train", work, sections=("train",), scratch=("half",))
    _perform(tmp_path / "r", _recipe(), job)
    folder = _folder(tmp_path / "r", "train")
    # As it lies between the manifest and the pointer.
    (tmp_path / "r" / "run.json").unlink()
    (folder / "half").write_text("1")
    _perform(tmp_path / "r", _recipe(), job)
    assert work.calls == 1
    assert {path.name for path in folder.iterdir()} == {"whole", "manifest.json"}


def test_a_job_that_refuses_at_once_leaves_no_directory(tmp_path: Path) -> None:
    def refuse(work: Work) -> Facts:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        _perform(tmp_path / "r", _recipe(), Job("train", refuse))
    assert {path.name for path in (tmp_path / "r").iterdir()} == {".lock", ".mlflow.json"}
