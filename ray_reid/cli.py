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
from typing import Any, NoReturn

from ray_reid.evaluation.commands import COMMANDS as RUN_COMMANDS
from ray_reid.evaluation.exchange_commands import COMMANDS as EXCHANGE_COMMANDS
from ray_reid.gallery import commands as galleries
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import interrupts
from ray_reid.runtime.arguments import name_home, place
from ray_reid.runtime.version import VERSION

log = logging.getLogger(__name__)

INTERRUPTED, TERMINATED = 130, 143
UNREAD = 141
"""Exit code of a command whose output goes to a closed pipe, as shells have it."""
MISTAKE = 2
UNFIT = 1
"""Exit code of a doctor who says that training may not start."""
EXAMPLE = r"(?P<identity>.+)_cam(?P<camera>\d+)"


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
    _add_replace(parser)
    _add_traceback(parser)
    options = parser.parse_args(arguments)

    def command() -> None:
        from ray_reid import pipelines

        recipe = _recipe_of_run(options)
        pipelines.run_job(name, recipe, options.run, options.address, options.replace)

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
        "evaluate": (_add_evaluate, _evaluate, "score a model package on a data set"),
        "tune": (_add_tune, _tune, "try values of a recipe, on several seeds each"),
        "doctor": (_add_doctor, _doctor, "look at a data set: may training start?"),
        "search": (galleries.add_search, galleries.search, "find an image in a run's gallery"),
        "gallery": (galleries.add, galleries.run, "change, check or export a run's gallery"),
        "show": (_add_show, _show, "tell all that a run knows of one image, and show it"),
        "serve": (_add_serve, _serve, "answer searches over HTTP"),
        "ui": (_add_ui, _ui, "open MLflow on the store of the runs"),
        **EXCHANGE_COMMANDS,
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
    _add_replace(parser)


def _add_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", help="name (backbones) or .yaml file")
    _add_run_options(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "package",
        nargs="+",
        help="model package, run, models:/NAME@ALIAS or pretrained:BACKBONE; several: an ensemble",
    )
    parser.add_argument("--recipe", help="use the data set and protocol of a recipe or .yaml file")
    _add_run_options(parser, "runs/PACKAGE-on-DATA")
    _add_replace(parser)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder of the data set")
    parser.add_argument("--reader", help="how to read it (default: the layout it has)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A=B", dest="overrides",
        help="option of the reader, such as pattern=..., or value of the recipe, such as "
        "train.sampler.num_identities=8",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", default="baseline", help="whose rules hold: name (default: baseline) or .yaml"
    )
    parser.add_argument("--profile", help="set of sizes in the recipe (default: its first)")
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


def _add_run_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument("--profile", help="set of sizes in the recipe (default: its first)")
    said = "run directory" if default is None else f"run directory (default: {default})"
    parser.add_argument("--run", type=place, required=default is None, help=said)
    parser.add_argument("--data", type=Path, help="a folder of photographs to use as the source")
    parser.add_argument("--reader", help="how to read --data (default: the layout it has)")
    parser.add_argument("--pattern", help="regular expression of their names, with --data")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="overrides")
    parser.add_argument("--address", help="Ray cluster; default RAY_ADDRESS, else a local one")


def _add_replace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replace", action="store_true", help="let other data take the place of the run's"
    )


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
        # --set takes JSON; the folder takes the place of the recipe's sources before --set applies.
        overrides.insert(0, f"ingest.sources={json.dumps([_source(options)])}")
    elif options.pattern is not None or options.reader is not None:
        given = "--reader" if options.pattern is None else "--pattern"
        raise ValueError(f"{given} is for a folder; give the folder with --data")
    return overrides


def _source(options: argparse.Namespace) -> dict[str, Any]:
    """The source that --data names: as --reader and --pattern say, else by its layout."""
    root = {"root": str(options.data)}
    if options.pattern is not None:
        return {"reader": options.reader or "folder", **root, "pattern": options.pattern}
    # A pattern that is set as another key means one's own names as well.
    set_here = any(one.startswith("ingest.sources.0.pattern") for one in options.overrides)
    if options.reader is not None or set_here:
        return {"reader": options.reader or "folder", **root}

    from ray_reid.datasets import sources

    known = sources.recognised(options.data, f"--pattern '{EXAMPLE}'")
    log.info("%s: reader %s", options.data, sources.described(known))
    return {**known.model_dump(mode="json", exclude_unset=True), "reader": known.reader, **root}


def _run(options: argparse.Namespace) -> None:
    recipe = _recipe(options)

    from ray_reid import pipelines

    pipelines.run(recipe, options.run, options.address, options.replace)


def _evaluate(options: argparse.Namespace) -> None:
    settings = dict(recipes.assignments(_overrides(options)))
    more = {name: getattr(options, name) for name in ("run", "recipe", "profile", "address")}

    from ray_reid import pipelines

    pipelines.score(options.package, settings=settings, replace_data=options.replace, **more)


def _tune(options: argparse.Namespace) -> None:
    from ray_reid import pipelines

    overrides = _overrides(options)
    pipelines.run_sweep(options.sweep, options.run, options.profile, overrides, options.address)


def _doctor(options: argparse.Namespace) -> int:
    from ray_reid.datasets import doctor, sources

    # Only the keys of a recipe have dots.
    dotted = [one for one in options.overrides if "." in one.partition("=")[0]]
    own = [one for one in options.overrides if one not in dotted]
    recipe = recipes.load(options.recipe, options.profile, dotted)
    if options.reader is None and not own:
        source = sources.recognised(options.path, f"--set pattern='{EXAMPLE}'")
    else:
        source = sources.single(options.path, options.reader or "folder", own)
    diagnosis = doctor.examine(source, look=not options.quick, recipe=recipe)
    print(doctor.page(options.path, diagnosis))
    return 0 if diagnosis.trainable else UNFIT


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


if __name__ == "__main__":
    sys.exit(main())
