"""The commands `ray-reid search` and `ray-reid gallery RUN ...`, all of the live gallery."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ray_reid.runtime.arguments import place

UNFIT = 1
"""Exit code of a check that finds something."""

Act = Callable[[argparse.Namespace], int | None]


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ray-reid gallery`."""
    parser.add_argument("run", type=place, help="run directory")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    known: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Act, str]] = {
        "enrol": (_add_enrol, _enrol, "embed the images of a folder and add or replace them"),
        "delete": (_add_delete, _delete, "remove images that fit every condition"),
        "count": (_add_nothing, _count, "print the number of images"),
        "check": (_add_nothing, _check, "read every byte; is it whole and up to date?"),
        "seed": (_add_seed, _seed, "take the run's newest index and keep what was enrolled"),
        "compact": (_add_nothing, _compact, "fold the log away and free the space of deleted rows"),
        "snapshot": (_add_snapshot, _snapshot, "copy the gallery as it is now"),
        "export": (_add_export, _export, "write it as Parquet, or as a faiss index with its ids"),
    }
    for name, (add_arguments, act, purpose) in known.items():
        own = actions.add_parser(name, help=purpose)
        add_arguments(own)
        own.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS)
        own.set_defaults(act=act, parser=own)


def run(options: argparse.Namespace) -> int | None:
    """Do what was asked; returns the exit code if it is not 0."""
    act: Act = options.act
    return act(options)


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ray-reid search`."""
    parser.add_argument("run", type=place)
    parser.add_argument("image", type=Path)
    parser.add_argument("-k", type=int, default=10, help="hits to show (default 10)")
    parser.add_argument(
        "--camera", metavar="SOURCE:CAMERA", help="that took the image, for its own thresholds"
    )
    parser.add_argument(
        "--refine", choices=("clothes",), help="also ask with the person in other clothes"
    )


def search(options: argparse.Namespace) -> None:
    """Print the images that are nearest to one."""
    query = options.run, options.image, options.k, options.camera
    told = ""
    if options.refine is None:
        from ray_reid.gallery.searcher import search_image

        hits = search_image(*query)
    else:
        from ray_reid.gallery import search as refined

        answer = refined.search_image(*query)
        hits, told = answer.hits, refined.sentence(answer.refinement)
    print(
        f"{'rank':>4}  {'similarity':>10}  {'decision':<8}  {'identity':<32}  {'camera':<8}  "
        f"{'observation':<32}  path"
    )
    for hit in hits:
        print(
            f"{hit.rank:>4}  {hit.similarity:>10.4f}  {hit.decision or '-':<8}  "
            f"{hit.identity or '-':<32}  "
            f"{hit.camera or '-':<8}  {hit.observation_id}  {hit.path or '-'}"
        )
    if told:
        print(told)


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    del parser


def _add_enrol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--pattern", help="regular expression of the image names (default: the recipe's)"
    )
    parser.add_argument("--source", help="name of the source (default: the folder's name)")
    parser.add_argument("--licence", help="terms of the images")


def _add_delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--identity", nargs="+", metavar="SOURCE:ID")
    parser.add_argument("--camera", nargs="+")
    parser.add_argument("--source", nargs="+")


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--drop-unembeddable", action="store_true",
        help="leave out enrolled rows without an image that a new model could embed",
    )  # fmt: skip


def _add_snapshot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="new folder")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help=".parquet or .faiss")


def _enrol(options: argparse.Namespace) -> None:
    from ray_reid.gallery import enrol
    from ray_reid.gallery.searcher import Searcher
    from ray_reid.runtime.results import RunState

    source = enrol.folder_source(
        RunState.read(options.run).recipe,
        options.folder,
        options.pattern,
        options.source,
        options.licence,
    )
    with Searcher.writing(options.run) as searcher:
        done = enrol.enrol(searcher, source)
        size = len(searcher.gallery)
    print(
        f"{options.folder}: enrolled {done.images} images of {done.identities} identities on "
        f"{done.cameras} cameras; the gallery has {size}"
    )
    if done.left_out:
        print(f"left out: {len(done.left_out)}")
    for sentence in done.left_out:
        print(f"  {sentence}")


def _delete(options: argparse.Namespace) -> None:
    from ray_reid.gallery import live
    from ray_reid.gallery.embedded.where import Where
    from ray_reid.gallery.embedded.writer import Writer
    from ray_reid.runtime.results import RunState

    given = (options.camera, options.source, options.identity)
    cameras, sources, identities = (None if one is None else tuple(one) for one in given)
    where = Where(cameras, sources, identities)
    with Writer(live.existing(RunState.read(options.run))) as writer:
        print(f"deleted {writer.delete_where(where)} images; the gallery has {len(writer)}")


def _count(options: argparse.Namespace) -> None:
    from ray_reid.gallery import live
    from ray_reid.gallery.embedded.store import Reader
    from ray_reid.runtime.results import RunState

    with Reader(live.existing(RunState.read(options.run))) as reader:
        print(len(reader))


def _check(options: argparse.Namespace) -> int:
    from ray_reid.gallery import live
    from ray_reid.gallery.embedded.store import Reader
    from ray_reid.runtime.results import RunState

    problems = live.problems(RunState.read(options.run))
    for problem in problems:
        print(problem)
    if problems:
        return UNFIT
    with Reader(live.existing(RunState.read(options.run))) as reader:
        print(
            f"{reader.path}: whole, {len(reader)} images, {len(reader.edits.kept)} of them "
            f"enrolled or changed, {len(reader.edits.deleted)} deleted; index "
            f"{reader.manifest.seed}, model {reader.model}"
        )
    return 0


def _seed(options: argparse.Namespace) -> None:
    from ray_reid.gallery import searcher
    from ray_reid.gallery.embedded.seeding import UnembeddableError

    try:
        done = searcher.seed(options.run, options.drop_unembeddable)
    except UnembeddableError as error:
        print("\n".join(error.ids))
        raise
    state = "seeded" if done.is_new else "up to date"
    print(f"{state}: {done.images} images, {done.kept} of them enrolled or changed")
    if done.left_out:
        print(f"left out: {len(done.left_out)}")
    for one in done.left_out:
        print(f"  {one}")


def _compact(options: argparse.Namespace) -> None:
    from ray_reid.gallery import live
    from ray_reid.gallery.embedded.writer import Writer
    from ray_reid.runtime.results import RunState

    with Writer(live.existing(RunState.read(options.run))) as writer:
        folded = writer.log_bytes
        writer.compact()
        print(f"folded {folded} bytes of the log; the gallery has {len(writer)} images")


def _snapshot(options: argparse.Namespace) -> None:
    from ray_reid.gallery import live
    from ray_reid.gallery.embedded.store import Reader
    from ray_reid.runtime.results import RunState

    with Reader(live.existing(RunState.read(options.run))) as reader:
        reader.snapshot(options.folder)
        print(f"{options.folder}: {len(reader)} images")


def _export(options: argparse.Namespace) -> None:
    from ray_reid.gallery import live
    from ray_reid.gallery.embedded.store import Reader
    from ray_reid.gallery.export import export
    from ray_reid.runtime.results import RunState

    with Reader(live.existing(RunState.read(options.run))) as reader:
        print(f"{options.to}: {export(reader.view(), options.to)} images")
