"""Stages on Ray Data: plain classes run over a table, streaming, in pools of actors.

A stage is `__init__(**params)`, which loads its model once per actor, and `__call__(batch)`,
which maps a dict of column arrays to another (DESIGN: five ideas, 2).
"""

import gc
import inspect
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray
import ray.data
import ray.exceptions
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.data.expressions import Expr
from ray.data.expressions import col as column

from ray_reid import places, schema, storage
from ray_reid.places import Place
from ray_reid.recipe.resources import StageSpec
from ray_reid.runtime import attempts
from ray_reid.runtime.attempts import Note
from ray_reid.runtime.capacity import READER, Share, fits, shrunk
from ray_reid.runtime.cluster import alive_nodes, cost
from ray_reid.runtime.facts import Cost
from ray_reid.runtime.patience import patient
from ray_reid.runtime.progress import watched
from ray_reid.schema import Batch

__all__ = [
    "Note",
    "Step",
    "apply",
    "check_params",
    "column",
    "stream",
    "tasks",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A stage class, the arguments of its constructor, and its resources."""

    stage: type[Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    spec: StageSpec = field(default_factory=StageSpec)
    whole: bool = False
    """Whether the stage takes the rows of a block in one call, whatever `spec.batch_size` says;
    for streams with blocks by a column."""


def apply(
    dataset: "ray.data.Dataset", step: Step, at_once: bool = False, by_block: bool = False
) -> "ray.data.Dataset":
    """Run a stage over a data set in a pool of actors, started `at_once` or grown from one.

    With `by_block` an actor is given one block after the other, and no rows of two together.

    Raises:
        ValueError: If a parameter is not one of the stage's constructor.
    """
    check_params(step.stage, step.params)
    actors, size = step.spec.actors, step.spec.batch_size
    # Ray Data would join small blocks until they fill a batch.
    split = size if by_block and not step.whole else None
    return dataset.map_batches(
        _Adapter,
        fn_constructor_kwargs={"stage": step.stage, "params": dict(step.params), "rows": split},
        batch_size=None if by_block else size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(
            min_size=actors if at_once else 1,
            max_size=actors,
            # A block that takes minutes must not wait behind another while an actor is idle.
            max_tasks_in_flight_per_actor=1 if step.whole else None,
        ),
        num_cpus=step.spec.num_cpus,
        num_gpus=step.spec.num_gpus or None,
    )


def stream(
    source: Place | pa.Table,
    columns: Sequence[str],
    steps: Sequence[Step],
    out: Place,
    name: str,
    where: Expr | None = None,
    encode: Callable[[Batch], Batch] | None = None,
    through: "Callable[[ray.data.Dataset], ray.data.Dataset] | None" = None,
    block_rows: int | None = None,
    by: str | None = None,
    note: Note | None = None,
) -> Cost | None:
    """Stream a table through stages into the new table `out`; a killed stream resumes.

    `source` is a table on disk, which workers read, or a small one in memory, such as a plan.
    Rows are known by `observation_id`, which must be unique and pass through every stage: what
    a killed attempt had written is kept, and its rows are not computed again. `where` says
    which rows to stream, and may use columns that are not in `columns`. `encode` is a function
    that the tasks that write apply to their rows: it needs no actors of its own. `through` is what
    somebody else makes of the stream after the stages. Blocks have `block_rows` rows, by default
    as many as the first stage says. `by` names a column of a small table in which equal values are
    adjacent: a block is then the rows of one value, no actor gets rows of two blocks together, and
    blocks are done in any order, so that a long one holds up no other. `note` says something of
    the rows that are written, behind the bar.

    Returns:
        What the rows took that were not there yet; null if all were.

    Raises:
        ValueError: If a worker refuses its input or cannot write, or Ray lacks the resources.
    """
    if storage.is_complete(out):
        return None
    # Ray Data's own checkpoints would do this too, but their filter is an actor that holds a
    # whole CPU and 1 GiB: on two cores a resumed stream waits for ever.
    kept, done = attempts.written(out)
    whole = pads.dataset(source) if isinstance(source, pa.Table) else storage.dataset(source)
    total = whole.count_rows(filter=None if where is None else where.to_pyarrow())
    if len(done) == total > 0:
        storage.complete(out, kept)
        return None
    if len(done):
        log.info("%d rows were written before and are kept", len(done))
    # Already to look at its input Ray Data starts a task.
    with patient(name):
        size = block_rows or steps[0].spec.block_rows
        dataset = _rows(source, columns, where, done, size if by is None else by)
    dataset.set_name(name)
    if by is not None:
        dataset.context.execution_options.preserve_order = False
    fitted = _fitted(name, steps)
    dataset = _staged(dataset, fitted, by is not None, through, encode)
    started = time.monotonic()
    made = _write(dataset, out, name, len(done), total, note)
    storage.complete(out, [*kept, *made])
    specs = [step.spec for step in fitted]
    return cost(specs, total - len(done), time.monotonic() - started)


def _staged(
    dataset: "ray.data.Dataset",
    steps: Sequence[Step],
    alone: bool,
    through: "Callable[[ray.data.Dataset], ray.data.Dataset] | None",
    encode: Callable[[Batch], Batch] | None,
) -> "ray.data.Dataset":
    """The stream behind its stages; `alone` keeps the rows of each block together."""
    at_once = _fit_at_once(steps)
    for step in steps:
        dataset = apply(dataset, step, at_once, alone)
    if through is not None:
        dataset = through(dataset)
    if encode is None:
        return dataset
    # Ray Data fuses this with the writing.
    last: Any = partial(_on_arrow, encode)
    return dataset.map_batches(last, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)


def _write(
    dataset: "ray.data.Dataset",
    out: Place,
    name: str,
    before: int,
    total: int,
    note: Note | None,
) -> list[str]:
    """Run a stream and write its rows beside those `before` it; returns the files, by name."""
    # A name of its own: workers of a killed driver may live on for a moment and write.
    attempt = out / f"attempt-{uuid.uuid4().hex[:8]}"
    refusal = None
    with watched(name, "row", attempts.progress(attempt, before, total, note)):
        try:
            filesystem, folder = places.opened(attempt.resolve())
            dataset.write_parquet(folder, filesystem=filesystem, **storage.PARQUET)
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            refusal = f"{name}: {reason(error).removeprefix('ValueError: ')}"
    if refusal is not None:
        # Not from the error: its frames hold Ray Data's actors, and so their CPUs, for as long as
        # anybody holds the exception.
        gc.collect()
        raise ValueError(refusal)
    return [f"{attempt.name}/{file.name}" for file in attempt.glob("*.parquet")]


def reason(error: BaseException) -> str:
    """What went wrong in a worker, in one line: the first cause that is not one of Ray's own."""
    told = re.findall(rf"{StageError.__name__}: (.+)", str(error))
    if told:
        return str(told[-1])
    # Ray Data blames itself in `__cause__` for whatever it does not know.
    behind = None if isinstance(error.__cause__, SystemException) else error.__cause__
    cause = getattr(error, "cause", None) or behind
    if isinstance(error, ray.exceptions.RayError) and isinstance(cause, BaseException):
        return reason(cause)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"


def _rows(
    source: Place | pa.Table,
    columns: Sequence[str],
    where: Expr | None,
    done: pa.Array,
    blocks: int | str,
) -> "ray.data.Dataset":
    """The rows that are left to stream, in blocks of so many, or of one value of a column."""
    rest: Any = partial(_without, done=done)
    if isinstance(source, pa.Table):
        chosen = source if where is None else source.filter(where.to_pyarrow())
        table = rest(chosen.select(list(columns)))
        ends = _block_ends(table, blocks)
        starts = [0, *ends[:-1]]
        return ray.data.from_arrow(
            [table.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]
        )
    assert isinstance(blocks, int), "blocks by a column need a table in memory"
    table = storage.dataset(source.resolve())
    dataset = ray.data.read_parquet(table.files, filesystem=table.filesystem)
    if where is not None:
        dataset = dataset.filter(expr=where)
    dataset = dataset.select_columns(list(columns))
    if len(done):
        dataset = dataset.map_batches(rest, batch_size=None, batch_format="pyarrow")
    # read_parquet coalesces small files into one block, which would run on one core.
    return dataset.repartition(target_num_rows_per_block=blocks)


def _block_ends(table: pa.Table, blocks: int | str) -> list[int]:
    """Where the blocks of a table end; one block at least, which tells the columns of no rows."""
    if isinstance(blocks, int):
        starts = range(0, max(table.num_rows, 1), blocks)
        return [min(start + blocks, table.num_rows) for start in starts]
    values = table[blocks].to_pylist()
    changes = [row for row in range(1, len(values)) if values[row] != values[row - 1]]
    return [*changes, len(values)]


def tasks(
    name: str,
    function: Callable[..., Any],
    arguments: Sequence[Mapping[str, Any]],
    num_cpus: float,
    num_gpus: float = 0.0,
) -> Iterator[tuple[int, Any]]:
    """Call a function with each of `arguments` in workers; yield (position, result) as they end.

    As many run at once as the resources allow.

    Raises:
        ValueError: If one of them fails, with its reason, or Ray lacks the resources for too long.
    """
    remote: Any = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(function)
    started = {remote.remote(**values): place for place, values in enumerate(arguments)}
    try:
        while started:
            with patient(name):
                (done,), _ = ray.wait(list(started), num_returns=1)
            place = started.pop(done)
            yield place, ray.get(done)
    except ray.exceptions.RayError as error:
        raise ValueError(f"{name}: {reason(error).removeprefix('ValueError: ')}") from error
    finally:
        for other in started:
            ray.cancel(other, force=True)


def check_params(stage: type[Any], params: Mapping[str, Any]) -> None:
    """Compare parameters with a stage's constructor before an actor starts.

    Raises:
        ValueError: If one is unknown or missing.
    """
    signature = inspect.signature(stage)
    unknown = sorted(params.keys() - signature.parameters.keys())
    if unknown:
        choices = list(signature.parameters)
        raise ValueError(f"{stage.__name__} has no parameter {unknown[0]!r}; choose from {choices}")
    required = (p for p in signature.parameters.values() if p.default is inspect.Parameter.empty)
    for parameter in required:
        if parameter.name not in params:
            raise ValueError(f"{stage.__name__} needs the parameter {parameter.name!r}")


def _fitted(name: str, steps: Sequence[Step]) -> list[Step]:
    """Shrink what actors ask for until one of each pool fits at once, beside a task that reads.

    Two pools of one CPU each would hold both cores of a small machine and wait for that task.

    Raises:
        ValueError: If one machine has too few GPUs; a cluster of several nodes may grow.
    """
    asked, nodes = [_share(step) for step in steps], alive_nodes()
    found = shrunk(asked, nodes)
    if found is None:
        _check_gpus(name, asked, nodes)
        return list(steps)
    for kind in ("num_cpus", "num_gpus"):
        before, after = _told(asked, kind), _told(found, kind)
        if before != after:
            log.info(
                "%s: %s %s of its stages is more than Ray has beside a reader; they take %s",
                *(name, kind, before, after),
            )
    return [
        replace(step, spec=step.spec.model_copy(update=asdict(share)))
        for step, share in zip(steps, found, strict=True)
    ]


def _check_gpus(name: str, asked: Sequence[Share], nodes: Sequence[Share]) -> None:
    wanted, has = sum(one.num_gpus for one in asked), sum(node.num_gpus for node in nodes)
    cpus, gpus = _told(asked, "num_cpus"), _told(asked, "num_gpus")
    if len(nodes) == 1 and wanted > has:
        raise ValueError(
            f"{name}: num_gpus {gpus} of its stages is more than the {has:g} GPUs that Ray has; "
            "lower one of them"
        )
    log.warning(
        "%s: Ray has no room yet for num_cpus %s and num_gpus %s of its stages; waiting for a node",
        *(name, cpus, gpus),
    )


def _share(step: Step) -> Share:
    return Share(step.spec.num_cpus, step.spec.num_gpus)


def _told(shares: Sequence[Share], kind: str) -> str:
    return " + ".join(f"{getattr(share, kind):g}" for share in shares)


def _fit_at_once(steps: Sequence[Step]) -> bool:
    """Whether all actors, and a task that reads or writes, find room: then none starts late."""
    actors = [_share(step) for step in steps for _ in range(step.spec.actors)]
    return fits([READER, *actors], alive_nodes())


def _without(table: pa.Table, done: pa.Array) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table[schema.OBSERVATION_ID], value_set=done)))


class StageError(Exception):
    """What went wrong in a stage, in one line: Ray hands on the text, not the exception."""


class _Adapter:
    """A stage as an actor; see `_on_arrow`."""

    def __init__(
        self, stage: type[Any], params: Mapping[str, Any], rows: int | None = None
    ) -> None:
        self._rows = rows
        # Aside, so that the models of all pools load at once, and what a stage refuses is told by
        # its first call: what the constructor of an actor raises, Ray prints with its traceback.
        self._stage = ThreadPoolExecutor(1).submit(stage, **params)

    def __call__(self, table: pa.Table) -> pa.Table:
        def called(part: pa.Table) -> pa.Table:
            return _on_arrow(lambda batch: self._stage.result()(batch), part)

        if self._rows is None or table.num_rows <= self._rows:
            return called(table)
        starts = range(0, table.num_rows, self._rows)
        parts = [called(table.slice(start, self._rows)) for start in starts]
        # A column that is empty in one part and has text in another has two types.
        return pa.concat_tables(parts, promote_options="permissive")


def _on_arrow(stage: Callable[[Batch], Batch], table: pa.Table) -> pa.Table:
    """Arrow blocks in and out of a stage; columns it passes on unchanged are not converted."""
    batch = schema.to_batch(table)
    try:
        result = stage(batch)
    except Exception as error:
        raise StageError(reason(error)) from error
    same = {n for n in result if n in batch and result[n] is batch[n]}
    changed = schema.to_table({n: v for n, v in result.items() if n not in same})
    columns = {n: table[n] if n in same else changed[n] for n in result}
    return pa.table(columns)
