"""The command `ray-reid`; heavy imports happen inside the commands, so `--help` is instant."""

import argparse
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ray_reid.evaluation.commands import COMMANDS as RUN_COMMANDS
from ray_reid.gallery import commands as galleries
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import interrupts
from ray_reid.runtime.arguments import name_home, place
from ray_reid.runtime.version import VERSION

INTERRUPTED, TERMINATED = 130, 143
UNREAD = 141
"""Exit code of a command whose output goes to a closed pipe, as shells have it."""
MISTAKE = 2
UNFIT = 1
"""Exit code of a doctor who says that training may not start."""
PEERS = ("fastreid", "torchreid", "transreid", "clipreid", "solider", "cal")
TABLES = ("generate", "inpaint", "ingest")
LAYOUTS = ("vehiclex", "market1501", "imagefolder", "parquet")


class CommandParser(argparse.ArgumentParser):
    """Says in one line, not in a page of usage, what was typed wrong; its commands likewise."""

    def error(self, message: str) -> NoReturn:
        """Print the message and where the options are explained, and exit with code 2."""
        self.exit(MISTAKE, f"ray-reid: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what a person got wrong is one sentence on stderr and exit code 2."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return _guarded(lambda: options.command(options), options.traceback)


def job_main(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run one job of a run, its inputs already published there: the main of a script in `jobs/`."""
    parser = CommandParser(description=f"Run the job {name!r} of a recipe.")
    parser.add_argument("--recipe", help="name or .yaml file (default: that of the run)")
    _add_run_options(parser)
    _add_traceback(parser)
    options = parser.parse_args(arguments)

    def command() -> None:
        from ray_reid import pipelines

        pipelines.run_job(name, _recipe_of_run(options), options.run, options.address)

    sys.exit(_guarded(command, options.traceback))


def _guarded(command: Callable[[], int | None], traceback: bool) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ray_reid").setLevel(logging.INFO)
    name_home()
    with interrupts.interruptible():
        try:
            code = command() or 0
            # At exit Python would print a traceback if the pipe is closed.
            print(end="", flush=True)
            return code
        except KeyboardInterrupt:
            return _interrupted()
        except (Exception, SystemExit) as error:
            # A library may turn an interrupt into an error of its own, or into an exit.
            if interrupts.came() is not None:
                return _interrupted()
            if isinstance(error, BrokenPipeError) and _drop_unread():
                return UNREAD
            if traceback or not isinstance(error, ValueError | OSError):
                raise
            print(f"ray-reid: {_sentence(error)}", file=sys.stderr)
            return MISTAKE


def _interrupted() -> int:
    terminated = interrupts.came() is signal.SIGTERM
    how = "terminated" if terminated else "interrupted"
    print(f"ray-reid: {how}; the same command goes on from here", file=sys.stderr)
    return TERMINATED if terminated else INTERRUPTED


def _drop_unread() -> bool:
    """Discard further output if standard output or error is a closed pipe; returns whether."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    closed = [number for number, event in poll.poll(0) if event & select.POLLERR]
    with open(os.devnull, "wb") as nowhere:
        for number in closed:
            os.dup2(nowhere.fileno(), number)
    return bool(closed)


def _sentence(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="ray-reid", description="Better re-identification from generated data, on Ray."
    )
    parser.add_argument("--version", action="version", version=f"ray-reid {VERSION}")
    parser.set_defaults(traceback=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    known = {
        "run": (_add_run, _run, "run a recipe: ingest, train, embed, evaluate, index"),
        "tune": (_add_tune, _tune, "try values of a recipe, on several seeds each"),
        "doctor": (_add_doctor, _doctor, "look at a data set: may training start?"),
        "search": (galleries.add_search, galleries.search, "find an image in a run's gallery"),
        "gallery": (galleries.add, galleries.run, "change, check or export a run's gallery"),
        "show": (_add_show, _show, "tell all that a run knows of one image, and show it"),
        "serve": (_add_serve, _serve, "answer searches over HTTP"),
        "ui": (_add_ui, _ui, "open MLflow on the store of the runs"),
        "export": (_add_export, _export, "write a table in the layout of a peer's toolkit"),
        "import": (_add_import, _import, "make a model package of a peer's checkpoint"),
        "export-onnx": (_add_export_onnx, _export_onnx, "write a model as an ONNX file"),
        "submission": (_add_submission, _submission, "write a run as AI City's track2.txt"),
        **RUN_COMMANDS,
    }
    for name, (add, command, purpose) in known.items():
        own = commands.add_parser(name, help=purpose)
        add(own)
        _add_traceback(own)
        own.set_defaults(command=command, parser=own)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name (baseline) or .yaml file")
    _add_run_options(parser)


def _add_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", help="name (backbones) or .yaml file")
    _add_run_options(parser)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder of the data set")
    parser.add_argument("--reader", help="how to read it (default: the layout it has)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A=B", dest="overrides",
        help="option of the reader, such as pattern=...",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="names and lists only, no images")


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=place)
    parser.add_argument("observation", help="its id, or the first 6 or more digits")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="write it here (default: RUN/shown)"
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=place)
    parser.add_argument("--host", help="address to bind (default: the recipe's, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port (default: the recipe's, 8000)")
    parser.add_argument("--address", help="Ray cluster; default RAY_ADDRESS, else a local one")


def _add_ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="parent of the run directories"
    )
    parser.add_argument("--port", type=int, default=5000)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=place)
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--table", choices=TABLES, help="default: the first it has")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=("train", "query", "gallery", "unlabelled"),
        help="with the layout parquet (default: train query gallery)",
    )


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="new folder of the package")
    parser.add_argument("--from", choices=PEERS, required=True, dest="peer")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides",
        help="what differs from the peer's published models, such as train.backbone=resnet101",
    )  # fmt: skip


def _add_export_onnx(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=place, help="run directory or model package")
    parser.add_argument("file", type=Path, help="new file")


def _add_submission(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=place)
    parser.add_argument("file", type=Path, help="new file")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", help="set of sizes in the recipe (default: its first)")
    parser.add_argument("--run", type=place, required=True, help="run directory")
    parser.add_argument("--data", type=Path, help="a folder of photographs to use as the source")
    parser.add_argument("--pattern", help="regular expression of their names, with --data")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="overrides")
    parser.add_argument("--address", help="Ray cluster; default RAY_ADDRESS, else a local one")


def _add_traceback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traceback", action="store_true", help="show where a mistake was found")


def _recipe(options: argparse.Namespace) -> Recipe:
    return recipes.load(options.recipe, options.profile, _overrides(options))


def _recipe_of_run(options: argparse.Namespace) -> Recipe:
    """Return the recipe that is asked for, or that of the run, or else the baseline."""
    from ray_reid.runtime.results import POINTER, RunState

    if options.recipe is not None or not (options.run / POINTER).exists():
        return recipes.load(options.recipe or "baseline", options.profile, _overrides(options))
    own = RunState.read(options.run).recipe
    if options.profile not in (None, own.profile):
        raise ValueError(
            f"run {str(options.run)!r} has the profile {own.profile!r}, not {options.profile!r}; "
            "give --recipe as well"
        )
    return recipes.change(own.model_dump(mode="json"), _overrides(options))


def _overrides(options: argparse.Namespace) -> list[str]:
    overrides: list[str] = list(options.overrides)
    if options.data is not None:
        source = {"reader": "folder", "root": str(options.data)}
        if options.pattern is not None:
            source["pattern"] = options.pattern
        # --set takes JSON; the folder takes the place of the recipe's sources before --set applies.
        overrides.insert(0, f"ingest.sources={json.dumps([source])}")
    elif options.pattern is not None:
        raise ValueError("--pattern names the images of a folder; give the folder with --data")
    return overrides


def _run(options: argparse.Namespace) -> None:
    recipe = _recipe(options)

    from ray_reid import pipelines

    pipelines.run(recipe, options.run, options.address)


def _tune(options: argparse.Namespace) -> None:
    from ray_reid import pipelines

    overrides = _overrides(options)
    pipelines.run_sweep(options.sweep, options.run, options.profile, overrides, options.address)


def _doctor(options: argparse.Namespace) -> int:
    from ray_reid.datasets import doctor, sources

    if options.reader is None and not options.overrides:
        found = doctor.recognise(options.path)
        if len(found) != 1:
            raise ValueError(_unrecognised(options.path, [source.reader for source in found]))
        source = found[0]
    else:
        source = sources.single(options.path, options.reader or "folder", options.overrides)
    diagnosis = doctor.examine(source, look=not options.quick)
    print(doctor.page(options.path, diagnosis))
    return 0 if diagnosis.trainable else UNFIT


def _unrecognised(path: Path, found: Sequence[str]) -> str:
    if found:
        return f"{str(path)!r} looks like each of {list(found)}; choose one with --reader"
    return (
        f"{str(path)!r} has none of the known layouts; give --reader, or for your own names "
        "--set pattern='(?P<identity>.+)_cam(?P<camera>\\d+)'"
    )


def _show(options: argparse.Namespace) -> None:
    from ray_reid.datasets import show

    found = show.show(options.run, options.observation)
    file = show.save(found, options.run, options.image)
    if found.pixels is not None and _has_colours():
        print(show.half_blocks(found.pixels))
    print(found.story)
    print(f"{'written to':<{show.INDENT}}{file}")


def _has_colours() -> bool:
    """Whether stdout is a terminal that draws coloured blocks (no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return False
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    return unicode and os.environ.get("TERM", "dumb") != "dumb"


def _serve(options: argparse.Namespace) -> None:
    from ray_reid.runtime.results import RunState
    from ray_reid.serving.app import serve_run

    recipe = RunState.read(options.run).recipe
    serve_run(options.run, recipe, options.host, options.port, options.address)


def _ui(options: argparse.Namespace) -> None:
    from ray_reid.runtime import mlflow_store
    from ray_reid.runtime.ports import check_port

    command = mlflow_store.server_command(options.runs, options.port)
    # MLflow would start for seconds and then print a traceback.
    check_port(mlflow_store.HOST, options.port)
    page = f"http://{mlflow_store.HOST}:{options.port}/"
    newest = mlflow_store.newest(options.runs)
    if newest is not None:
        print(f"newest run: {page}{newest}")
    print(f"all runs: {page}{mlflow_store.ALL_RUNS}", flush=True)
    os.execve(*command)


def _export(options: argparse.Namespace) -> None:
    from ray_reid.datasets import export

    table = export.find_table(options.run, options.table)
    if options.splits is None:
        done = export.LAYOUTS[options.layout](table, options.folder)
    elif options.layout == "parquet":
        done = export.parquet.write_parquet(table, options.folder, options.splits)
    else:
        raise ValueError(f"layout {options.layout!r} has its own splits; --splits is for 'parquet'")
    print(
        f"{options.folder}: {done.images} images of {done.identities} identities on "
        f"{done.cameras} cameras; licence: {'; '.join(done.licences)}"
    )
    for reason, count in done.skipped.items():
        print(f"left out: {count} images ({reason})")


def _import(options: argparse.Namespace) -> None:
    from ray_reid.models.checkpoints import import_checkpoint

    done = import_checkpoint(options.checkpoint, options.folder, options.peer, options.overrides)
    print(f"{options.folder}: a model package of {done.identities} identities")
    if done.left_out:
        groups = ", ".join(f"{name} ({count})" for name, count in done.left_out.items())
        print(f"left out: {groups}")


def _export_onnx(options: argparse.Namespace) -> None:
    from ray_reid.models import onnx_export, package

    done = onnx_export.export(package.load(options.run, "cpu"), options.file)
    print(
        f"{options.file}: embeddings of {done.dimension} numbers; lowest cosine with PyTorch's "
        f"{done.cosine:.6f} over {done.images} images"
    )


def _submission(options: argparse.Namespace) -> None:
    from ray_reid.datasets.export import track2

    queries = track2.write(options.run, options.file)
    print(f"{options.file}: {queries} queries, the nearest {track2.TOP} images of each")


if __name__ == "__main__":
    sys.exit(main())
