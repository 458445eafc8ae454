"""Commands of `ray-reid` that exchange tables and models with other toolkits."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from ray_reid.evaluation.commands import Command
from ray_reid.runtime.arguments import place

PEERS = ("fastreid", "torchreid", "transreid", "clipreid", "solider", "cal")
TABLES = ("generate", "inpaint", "personalise", "ingest")
LAYOUTS = ("vehiclex", "market1501", "imagefolder", "parquet")


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


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="new folder of the package")
    parser.add_argument("--from", choices=PEERS, required=True, dest="peer")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides",
        help="what differs from the peer's published models, such as train.backbone=resnet101",
    )  # fmt: skip


def _import(options: argparse.Namespace) -> None:
    from ray_reid.models.checkpoints import import_checkpoint

    done = import_checkpoint(options.checkpoint, options.folder, options.peer, options.overrides)
    print(f"{options.folder}: a model package of {done.identities} identities")
    if done.left_out:
        groups = ", ".join(f"{name} ({count})" for name, count in done.left_out.items())
        print(f"left out: {groups}")


def _add_export_onnx(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=place, help="run directory or model package")
    parser.add_argument("file", type=Path, help="new file")


def _export_onnx(options: argparse.Namespace) -> None:
    from ray_reid.models import onnx_export, package

    done = onnx_export.export(package.load(options.run, "cpu"), options.file)
    print(
        f"{options.file}: embeddings of {done.dimension} numbers; lowest cosine with PyTorch's "
        f"{done.cosine:.6f} over {done.images} images"
    )


def _add_submission(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=place)
    parser.add_argument("file", type=Path, help="new file")


def _submission(options: argparse.Namespace) -> None:
    from ray_reid.datasets.export import track2

    queries = track2.write(options.run, options.file)
    print(f"{options.file}: {queries} queries, the nearest {track2.TOP} images of each")


COMMANDS: Mapping[str, Command] = {
    "export": (_add_export, _export, "write a table in the layout of a peer's toolkit"),
    "import": (_add_import, _import, "make a model package of a peer's checkpoint"),
    "export-onnx": (_add_export_onnx, _export_onnx, "write a model as an ONNX file"),
    "submission": (_add_submission, _submission, "write a run as AI City's track2.txt"),
}
