import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data.expressions import col

from ray_reid import schema, storage
from ray_reid.recipe import recipes
from ray_reid.recipe.resources import StageSpec
from ray_reid.runtime import attempts, cluster, stage


class Scale:
    """Multiply the seed; say in `log` which rows were computed."""

    def __init__(self, factor: int, log: str | None = None, seconds: float = 0.0) -> None:
        self.factor, self.log, self.seconds = factor, log, seconds

    def __call__(self, batch: schema.Batch) -> schema.Batch:
        time.sleep(self.seconds)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.writelines(f"{name}\n" for name in batch[schema.OBSERVATION_ID])
        return {**batch, schema.SEED: batch[schema.SEED] * self.factor}


class Gather:
    """Count the rows of a call in `track`; the group `slow` waits until others are done."""

    def __init__(self, log: str, others: int = 0) -> None:
        self.log, self.others = Path(log), others

    def __call__(self, batch: schema.Batch) -> schema.Batch:
        groups = set(batch[schema.IDENTITY])
        deadline = time.monotonic() + 100
        while "slow" in groups and self._done() < self.others:
            assert time.monotonic() < deadline, "the slow block holds up others"
            time.sleep(0.1)
        rows = len(batch[schema.IDENTITY])
        with self.log.open("a") as file:
            file.write(f"{'+'.join(sorted(groups))} {rows}\n")
        counted = np.full(rows, f"{rows}", dtype=object)
        # A column that is text in one part and empty in another.
        reason = np.array([None if row % 2 else "odd" for row in range(rows)], dtype=object)
        return {**batch, schema.TRACK: counted, "extra": reason[:1].repeat(rows)}

    def _done(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def shifted(batch: schema.Batch, by: int) -> schema.Batch:
    """Add to the seeds; refuse 6."""
    if 6 in batch[schema.SEED]:
        raise ValueError("6 cannot be encoded")
    return {**batch, schema.SEED: batch[schema.SEED] + by}


def table(num_rows: int) -> pa.Table:
    return schema.observations(
        [
            {
                "observation_id": f"{row:04d}",
                "image": bytes([row % 256]),
                "source": "made",
                "split": "train" if row % 2 else "gallery",
                "seed": row,
            }
            for row in range(num_rows)
        ]
    )


def test_check_params_names_an_unknown_or_missing_parameter() -> None:
    stage.check_params(Scale, {"factor": 2})
    with pytest.raises(ValueError, match=r"no parameter 'facter'; choose from \['factor'"):
        stage.check_params(Scale, {"facter": 2})
    with pytest.raises(ValueError, match="needs the parameter 'factor'"):
        stage.check_params(Scale, {})


def test_the_adapter_keeps_the_types_of_the_record() -> None:
    rows = table(3)
    result = stage._Adapter(Scale, {"factor": 3})(rows)
    assert result.schema.types == rows.schema.types
    assert result["seed"].to_pylist() == [0, 3, 6]
    for name in ("drop_reason", "attributes", "time"):
        assert result[name].null_count == 3


def test_the_adapter_turns_maps_into_dicts_and_back() -> None:
    class Measure:
        def __call__(self, batch: schema.Batch) -> schema.Batch:
            scores = np.array([None, {"sharpness": 2.5}], dtype=object)
            return {**batch, schema.SCORES: scores}

    result = stage._Adapter(Measure, {})(table(2))
    assert result["scores"].to_pylist() == [None, [("sharpness", 2.5)]]
    assert result.schema.field("scores").type == schema.OBSERVATION.field("scores").type


def pools(*asked: tuple[float, float]) -> list[stage.Step]:
    return [
        stage.Step(Scale, {"factor": 2}, StageSpec(num_cpus=cpus, num_gpus=gpus))
        for cpus, gpus in asked
    ]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes Ray have nodes with these CPUs and GPUs, and one that was lost."""

    def nodes(*has: tuple[float, float]) -> None:
        found = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in has]
        lost = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [lost, *found])

    return nodes


def test_pools_share_the_cores_that_the_reader_leaves(ray_local: None) -> None:
    steps = pools((1.0, 0.0), (1.0, 0.0))
    assert [step.spec.num_cpus for step in stage._fitted("test", steps)] == [0.5, 0.5]
    assert stage._fitted("test", steps[:1]) == steps[:1]


def test_models_share_the_only_gpu_aloud(
    pretend: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipes.load("vehicle_diff", "paper")
    specs = [recipe.generate.stage, *(one.stage for one in recipe.filters)]
    steps = [stage.Step(Scale, {"factor": 2}, spec) for spec in specs]
    pretend((16.0, 1.0))
    with caplog.at_level("INFO", "ray_reid"):
        fitted = stage._fitted("generate", steps)
    assert [step.spec.num_gpus for step in fitted] == [0.6667, 0.1666, 0.1666]
    assert [step.spec.batch_size for step in fitted] == [spec.batch_size for spec in specs]
    assert caplog.messages == [
        "generate: num_gpus 1 + 0.25 + 0.25 of its stages is more than Ray has beside a reader; "
        "they take 0.6667 + 0.1666 + 0.1666"
    ]
    assert not stage._fit_at_once(fitted)
    pretend((16.0, 8.0), (16.0, 1.0))
    assert stage._fitted("generate", steps) == steps
    assert stage._fit_at_once(steps)


def test_gpus_that_are_not_there_are_refused_or_waited_for(
    pretend: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    steps = pools((1.0, 2.0), (1.0, 1.0))
    pretend((16.0, 2.0))
    with pytest.raises(
        ValueError, match=r"paint: num_gpus 2 \+ 1 of its stages is more than the 2"
    ):
        stage._fitted("paint", steps)
    pretend((16.0, 1.0), (16.0, 1.0))
    assert stage._fitted("paint", steps) == steps
    assert caplog.messages == [
        "paint: Ray has no room yet for num_cpus 1 + 1 and num_gpus 2 + 1 of its stages; "
        "waiting for a node"
    ]


def test_stream_runs_two_stages_over_the_chosen_rows(ray_local: None, tmp_path: Path) -> None:
    storage.write(tmp_path / "in", table(20))
    steps = [stage.Step(Scale, {"factor": 2}), stage.Step(Scale, {"factor": 5})]
    columns = ["observation_id", "seed", "attributes", "drop_reason"]
    stage.stream(tmp_path / "in", columns, steps, tmp_path / "out", "test", col("split") == "train")
    found = storage.read(tmp_path / "out", columns)
    assert found["seed"].to_pylist() == [10 * row for row in range(1, 20, 2)]
    # A column that is null in every row must not lose its type on the way to the file.
    assert found.schema.types == [schema.OBSERVATION.field(name).type for name in columns]


def test_stream_encodes_what_the_stages_leave(ray_local: None, tmp_path: Path) -> None:
    storage.write(tmp_path / "in", table(4))
    encode, columns = partial(shifted, by=1), ["observation_id", "seed"]
    steps = [stage.Step(Scale, {"factor": 5})]
    stage.stream(tmp_path / "in", columns, steps, tmp_path / "out", "test", encode=encode)
    assert storage.read(tmp_path / "out", columns)["seed"].to_pylist() == [1, 6, 11, 16]
    steps = [stage.Step(Scale, {"factor": 3})]
    with pytest.raises(ValueError, match=r"^test: 6 cannot be encoded$"):
        stage.stream(tmp_path / "in", columns, steps, tmp_path / "none", "test", encode=encode)


def test_stream_takes_a_table_in_memory_and_resumes_it(ray_local: None, tmp_path: Path) -> None:
    params = {"factor": 2, "log": str(tmp_path / "log")}
    steps = [stage.Step(Scale, params, StageSpec(batch_size=4, block_rows=4))]
    columns, out = ["observation_id", "seed", "drop_reason"], tmp_path / "out"
    cost = stage.stream(table(20), columns, steps, out, "test", col("split") == "train")
    assert storage.read(out, ["seed"])["seed"].to_pylist() == [2 * row for row in range(1, 20, 2)]
    assert cost is not None
    assert (cost.rows, cost.device, cost.devices) == (10, "CPU", 2)
    assert cost.hours(3600) == pytest.approx(cost.seconds * 2 / 10)
    # Ten rows in blocks of four.
    assert len(storage.files(out) or []) == 3

    # As an attempt that was killed leaves it.
    (out / storage.FILES).unlink()
    cost = stage.stream(table(20), columns, steps, out, "test")
    assert cost is not None
    assert cost.rows == 10
    found = storage.read(out, columns)
    assert found["seed"].to_pylist() == [2 * row for row in range(20)]
    assert found.schema.types == [schema.OBSERVATION.field(name).type for name in columns]
    computed = (tmp_path / "log").read_text().split()
    assert sorted(computed) == [f"{row:04d}" for row in range(20)]
    # What is whole is not computed again.
    assert stage.stream(table(20), columns, steps, out, "test") is None
    assert (tmp_path / "log").read_text().split() == computed


def test_blocks_of_a_column_are_whole_and_a_long_one_holds_up_no_other(
    ray_local: None, tmp_path: Path
) -> None:
    sizes = {"slow": 5, "b": 3, "c": 1, "d": 7, "e": 2}
    groups = [name for name, count in sizes.items() for _ in range(count)]
    rows = table(len(groups)).set_column(
        schema.OBSERVATION.names.index("identity"), "identity", pa.array(groups)
    )
    logs = [tmp_path / "whole", tmp_path / "parts"]
    spec = StageSpec(actors=2, num_cpus=0.4, batch_size=2)
    whole = {"log": str(logs[0]), "others": len(sizes) - 1}
    steps = [
        stage.Step(Gather, whole, spec, whole=True),
        stage.Step(Gather, {"log": str(logs[1])}, spec),
    ]
    told: list[tuple[int, int, bool]] = []

    def tell(done: pa.Table, size: int, left: int) -> str:
        told.append((done.num_rows, left, size > 0))
        return "on the way"

    note = stage.Note(("identity",), tell)
    columns, out = ["observation_id", "identity"], tmp_path / "out"
    stage.stream(rows, columns, steps[:1], out, "test", by="identity", note=note)
    assert {line.split()[0]: int(line.split()[1]) for line in logs[0].read_text().splitlines()} == (
        sizes
    )
    found = storage.read(out, ["identity", "track"])
    assert found["track"].to_pylist() == [str(sizes[name]) for name in groups]
    assert all(done + left == len(groups) and size for done, left, size in told)
    files = [pq.read_table(file, columns=["identity"]) for file in storage.files(out) or []]
    assert sorted(len(set(file["identity"].to_pylist())) for file in files) == [1] * len(sizes)

    # Stages that take batches get parts of one block, and no rows of two.
    stage.stream(rows, columns, steps, tmp_path / "both", "test", by="identity")
    calls = [line.split() for line in logs[1].read_text().splitlines()]
    assert sorted(int(count) for _, count in calls) == [1] * 4 + [2] * 7
    assert all("+" not in group for group, _ in calls)
    # Other streams keep their order.
    assert ray.data.DataContext.get_current().execution_options.preserve_order


def test_a_torn_block_is_resumed_with_the_rows_that_are_left(
    ray_local: None, tmp_path: Path
) -> None:
    groups = ["a"] * 4 + ["b"] * 3
    rows = table(7).set_column(
        schema.OBSERVATION.names.index("identity"), "identity", pa.array(groups)
    )
    out = tmp_path / "out"
    (out / "attempt-killed").mkdir(parents=True)
    pq.write_table(rows.slice(0, 2), out / "attempt-killed" / "0.parquet")
    step = stage.Step(Gather, {"log": str(tmp_path / "log")}, whole=True)
    stage.stream(rows, schema.OBSERVATION.names, [step], out, "test", by="identity")
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["a 2", "b 3"]
    assert storage.read(out, ["identity"], kept_only=False)["identity"].to_pylist() == groups


def test_a_cluster_that_may_grow_is_waited_for_aloud(
    pretend: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    pretend((8.0, 0.0), (16.0, 1.0))
    cluster.check_capacity("train.num_workers", 1, 16.0, 1.0)
    assert not caplog.records
    cluster.check_capacity("train.num_workers", 4, 8.0, 0.0)
    cluster.check_capacity("train.num_workers", 1, 20.0, 0.0)
    wanted = ("4 of 8 CPUs", "1 of 20 CPUs")
    assert caplog.messages == [
        f"train.num_workers {workers} each needs more than the 24 CPUs, at most 16 on one node, "
        "that Ray has; waiting for a node to join"
        for workers in wanted
    ]
    pretend((8.0, 0.0))
    with pytest.raises(ValueError, match=r"num_workers 2 of 8 CPUs each needs more than the 8"):
        cluster.check_capacity("train.num_workers", 2, 8.0, 0.0)


def slow_stream(folder: Path) -> None:
    """Stream 96 rows in blocks of 8, slowly enough to be killed on the way."""
    import ray

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=10**8)
    cluster.configure()
    seconds = 0.3 if not list(folder.glob("out/attempt-*")) else 0.0
    params = {"factor": 7, "log": str(folder / "log"), "seconds": seconds}
    steps = [stage.Step(Scale, params, StageSpec(batch_size=8, block_rows=8))]
    stage.stream(folder / "in", schema.OBSERVATION.names, steps, folder / "out", "test")


def test_of_two_files_with_a_row_in_common_one_is_kept(tmp_path: Path) -> None:
    for name, start, stop in (("a", 0, 8), ("b", 8, 16), ("c", 12, 20)):
        (tmp_path / f"attempt-{name}").mkdir()
        rows = table(96).slice(start, stop - start)
        pq.write_table(rows, tmp_path / f"attempt-{name}" / "0.parquet")
    (tmp_path / "attempt-a" / "half.parquet").write_bytes(b"PAR1 and no footer")
    kept, done = attempts.written(tmp_path)
    assert kept == ["attempt-a/0.parquet", "attempt-b/0.parquet"]
    assert done.to_pylist() == [f"{row:04d}" for row in range(16)]


@pytest.mark.slow
def test_a_stream_killed_midway_goes_on_without_repeating_a_row(
    ray_local: None, tmp_path: Path
) -> None:
    storage.write(tmp_path / "in", table(96))
    script = (
        "import pathlib; from tests.runtime import test_stage; "
        f"test_stage.slow_stream(pathlib.Path({str(tmp_path)!r}))"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(list(tmp_path.glob("out/attempt-*/*.parquet"))) >= 3, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # Ray's processes notice the death of their driver.
    (attempt,) = tmp_path.glob("out/attempt-*")
    (attempt / "half.parquet").write_bytes(b"PAR1 and no footer")
    before = written_ids(attempt)
    assert 0 < len(before) < 96

    (tmp_path / "log").unlink()
    slow_stream(tmp_path)
    # A worker of the dead driver that still writes must not reach the table.
    pq.write_table(table(96), attempt / "late.parquet")
    found = storage.read(tmp_path / "out", schema.OBSERVATION.names)
    assert found["observation_id"].to_pylist() == [f"{row:04d}" for row in range(96)]
    assert found["seed"].to_pylist() == [7 * row for row in range(96)]
    again = set((tmp_path / "log").read_text().split())
    assert again == {f"{row:04d}" for row in range(96)} - before


def written_ids(out: Path) -> set[str]:
    found: set[str] = set()
    for file in out.glob("*.parquet"):
        if file.read_bytes().endswith(b"PAR1"):
            found |= set(pq.read_table(file)["observation_id"].to_pylist())
    return found


def wait_until(
    done: Callable[[], bool], driver: "subprocess.Popen[bytes]", seconds: int = 120
) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert driver.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < end, "the driver wrote nothing"
        time.sleep(0.05)


def test_an_address_where_nobody_listens_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ValueError, match=f"no Ray cluster answers at '{address}': .*refused"):
        cluster._check_answers(address)
