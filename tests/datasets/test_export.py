import csv
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_reid import cli, images, schema, storage
from ray_reid.datasets import export, loading
from ray_reid.datasets.readers import folder, market1501, parquet, vehiclex
from ray_reid.datasets.readers.folder import FolderSource
from ray_reid.datasets.readers.market1501 import Market1501Source
from ray_reid.datasets.readers.parquet import ParquetSource
from ray_reid.datasets.readers.vehiclex import VehicleXSource
from ray_reid.datasets.reading import Reading
from ray_reid.evaluation import exchange_commands

Rows = list[dict[str, Any]]


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return images.encode(pixels)


def row(
    number: int, identity: str | None, camera: str | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "observation_id": schema.observation_id("test", number),
        "image": picture(number),
        "identity": identity,
        "camera": camera,
        "source": "test",
        "split": "train",
        **more,
    }


def generated() -> Rows:
    """Two invented vehicles without cameras, one image that a filter rejected."""
    pim = {"colour": "dark blue", "year": "2011", "brand": "Orvella", "model": 'Pim "<&>"'}
    fen = {"colour": "red", "body_style": "coupe", "orientation": "30.5", "empty": ""}
    return [
        *(row(i, "vehicle_diff:blue_pim", attributes=pim, origin="synthetic") for i in range(3)),
        *(row(i, "vehicle_diff:red_fen", attributes=fen, origin="synthetic") for i in range(3, 5)),
        row(5, "vehicle_diff:red_fen", attributes=fen, drop_reason="colour: white"),
        row(6, None, split="unlabelled"),
        row(7, None, licence="CC0"),
    ]


def read_in() -> Rows:
    """A set with every split and role, cameras named out of order, and one image without any."""
    return [
        row(0, "own:b", "10"),
        row(1, "own:b", "9"),
        row(2, "own:b", "9"),
        row(3, "own:a", None),
        row(4, "own:t", "10", split="query"),
        row(5, "own:t", "9", split="gallery"),
        row(6, None, "9", split="gallery", role="junk"),
        row(7, "own:x", "10", split="gallery", role="distractor"),
    ]


def write(path: Path, rows: Rows) -> Path:
    storage.write(path, schema.observations(rows))
    return path


def numbers(file: Path) -> dict[str, str]:
    with file.open(encoding="utf-8", newline="") as text:
        return {
            line["number"]: line[column]
            for line in csv.DictReader(text)
            for column in line
            if column != "number"
        }


def tree(root: Path) -> dict[str, bytes]:
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file()
    }


def pictures(found: Reading, names: dict[str, str]) -> Counter[tuple[str | None, bytes]]:
    """Identity under its own name, and bytes, of every image that was read back."""
    return Counter(
        (
            names[str(int(row["identity"].partition(":")[2]))] if row["identity"] else None,
            Path(row["locator"]).read_bytes(),
        )
        for row in found.rows
    )


def test_vehiclex_is_read_back_with_images_identities_and_attributes(tmp_path: Path) -> None:
    rows = generated()
    out = tmp_path / "new" / "out"
    done = export.vehiclex.write_vehiclex(write(tmp_path / "t", rows), out)
    assert (done.images, done.identities, done.cameras) == (5, 2, 1)
    assert done.skipped == {"split unlabelled": 1, "unlabelled": 1}
    assert done.licences == ("unknown",)
    found = vehiclex.read_vehiclex(VehicleXSource(root=str(out)))
    assert found.warnings == []
    names = numbers(out / "identities.csv")
    assert pictures(found, names) == Counter((r["identity"], r["image"]) for r in rows[:5])
    attributes = {Path(r["locator"]).read_bytes(): r["attributes"] for r in found.rows}
    for expected in rows[:5]:
        kept = {name: value for name, value in expected["attributes"].items() if value}
        assert attributes[expected["image"]] == kept
    assert {r["camera"] for r in found.rows} == {"1"}
    assert numbers(out / "cameras.csv") == {"1": ""}
    assert (out / "sys_image_train" / "00002_c001_2.jpg").is_file()
    assert (out / "list_color.txt").read_text() == "0 dark blue\n1 red\n"


def test_a_vehiclex_set_without_lists_is_written_as_it_was_read(tmp_path: Path) -> None:
    attributes = {"colour_id": "7", "body_style_id": "3", "light_intensity": "0.5"}
    rows = [row(i, f"vehiclex:{i}", "6", attributes=attributes) for i in (1, 2)]
    export.vehiclex.write_vehiclex(write(tmp_path / "t", rows), tmp_path / "out")
    assert 'colorID="7" typeID="3" lightInt="0.5"' in (tmp_path / "out/train_label.xml").read_text()
    assert not (tmp_path / "out" / "list_color.txt").exists()
    found = vehiclex.read_vehiclex(VehicleXSource(root=str(tmp_path / "out")))
    assert [r["attributes"] for r in found.rows] == [attributes, attributes]


def test_test_images_are_not_exported_for_training(tmp_path: Path) -> None:
    done = export.vehiclex.write_vehiclex(write(tmp_path / "t", read_in()), tmp_path / "out")
    assert (done.images, done.skipped) == (4, {"split query": 1, "split gallery": 3})
    assert set(numbers(tmp_path / "out" / "identities.csv").values()) == {"own:a", "own:b"}


def test_market1501_is_read_back_with_splits_cameras_and_roles(tmp_path: Path) -> None:
    rows = read_in()
    out = tmp_path / "out"
    done = export.market1501.write_market1501(write(tmp_path / "t", rows), out)
    assert (done.images, done.identities, done.cameras, done.skipped) == (8, 3, 3, {})
    found = market1501.read_market1501(Market1501Source(root=str(out)))
    assert found.warnings == []
    names, cameras = numbers(out / "identities.csv"), numbers(out / "cameras.csv")
    # Ordered as numbers, and the images without a camera as one of their own.
    assert cameras == {"1": "9", "2": "10", "3": ""}
    expected = [
        (
            r["image"],
            r["split"],
            r.get("role", "normal"),
            r["camera"] or "",
            r["identity"] if r.get("role", "normal") == "normal" else None,
        )
        for r in rows
    ]
    assert Counter(expected) == Counter(
        (
            Path(r["locator"]).read_bytes(),
            r["split"],
            r["role"],
            cameras[r["camera"]],
            names[str(int(r["identity"].partition(":")[2]))] if r["identity"] else None,
        )
        for r in found.rows
    )
    files = {Path(name).name for name in tree(out)}
    assert {"0002_c1s1_000002_00.jpg", "-1_c1s1_000001_00.jpg", "0000_c2s1_000001_00.jpg"} <= files


def test_the_market_layout_has_room_for_nine_cameras(tmp_path: Path) -> None:
    table = write(tmp_path / "t", [row(i, "own:a", str(i)) for i in range(10)])
    with pytest.raises(ValueError, match="has 10 cameras, and the names of Market-1501 have room"):
        export.market1501.write_market1501(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export.vehiclex.write_vehiclex(table, tmp_path / "out").cameras == 10


def test_a_folder_is_read_back_with_the_default_pattern(tmp_path: Path) -> None:
    rows = read_in()
    out = tmp_path / "out"
    done = export.imagefolder.write_imagefolder(write(tmp_path / "t", rows), out)
    assert done.skipped == {"junk": 1, "distractor": 1}
    found = folder.read_folder(FolderSource(root=str(out)))
    assert found.warnings == []
    expected = Counter((r["identity"], r["image"]) for r in rows[:6])
    assert pictures(found, numbers(out / "identities.csv")) == expected
    splits = {Path(r["locator"]).read_bytes(): r["split"] for r in found.rows}
    assert splits == {r["image"]: r["split"] for r in rows[:6]}
    assert len(list((out / "train").iterdir())) == 2


def test_parquet_is_read_back_as_the_same_observations(tmp_path: Path) -> None:
    scored = {"scores": {"clip": 0.5}, "parent": "p", "prompt": "a red coat", "seed": 3}
    rows = [*read_in(), row(8, "own:c", drop_reason="colour: white"), row(9, None)]
    rows += [row(10, "own:c", "9", origin="synthetic", attributes={"upper": "red"}, **scored)]
    rows = [{**r, "source": "own"} for r in rows]
    out = tmp_path / "out"
    done = export.parquet.write_parquet(write(tmp_path / "t", rows), out)
    assert (done.images, done.identities, done.cameras) == (9, 4, 3)
    assert done.skipped == {"unlabelled": 1}
    assert list(tree(out)) == ["part-00000.parquet"]
    found = parquet.read_parquet(ParquetSource(root=str(out)))
    assert found.warnings == []
    loaded = [
        {k: v for k, v in r.items() if k != "locator"} | loading.load(r["locator"])
        for r in found.rows
    ]
    assert not any("drop_reason" in loading.load(r["locator"]) for r in found.rows)
    kept = [
        r
        for r in rows
        if "drop_reason" not in r and r["observation_id"] != rows[9]["observation_id"]
    ]
    key = "observation_id"
    assert schema.observations(loaded).sort_by(key) == schema.observations(kept).sort_by(key)


def test_parquet_has_the_splits_that_are_asked_for(tmp_path: Path) -> None:
    table = write(tmp_path / "t", [*read_in(), row(8, None, split="unlabelled")])
    done = export.parquet.write_parquet(table, tmp_path / "a", ["gallery", "unlabelled"])
    assert done.skipped == {"split train": 4, "split query": 1}
    splits = pq.read_table(tmp_path / "a")["split"].to_pylist()
    assert Counter(splits) == {"gallery": 3, "unlabelled": 1}
    with pytest.raises(ValueError, match=r"unknown split 'val'; choose from \['train', "):
        export.parquet.write_parquet(table, tmp_path / "b", ["val"])


def test_parquet_files_and_row_groups_have_a_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.parquet, "FILE_ROWS", 4)
    monkeypatch.setattr(storage, "ROW_GROUP", 2)
    rows = [row(i, f"own:{i % 3}", str(i % 2)) for i in range(11)]
    export.parquet.write_parquet(write(tmp_path / "t", rows), tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert [pq.ParquetFile(file).num_row_groups for file in files] == [2, 2, 2]
    tables = [pq.read_table(file) for file in files]
    assert [table.num_rows for table in tables] == [4, 4, 3]
    ids = [name for table in tables for name in table["observation_id"].to_pylist()]
    images = [image for table in tables for image in table["image"].to_pylist()]
    assert dict(zip(ids, images, strict=True)) == {r["observation_id"]: r["image"] for r in rows}
    assert ids == sorted(ids)


def test_other_formats_become_jpeg_only_where_the_layout_demands_it(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "x.png")
    png = (tmp_path / "x.png").read_bytes()
    table = write(tmp_path / "t", [row(0, "own:a", image=png), row(1, "own:b")])
    export.imagefolder.write_imagefolder(table, tmp_path / "folder")
    assert tree(tmp_path / "folder")["train/00001/00001_cam1_000001.png"] == png
    export.market1501.write_market1501(table, tmp_path / "market")
    files = tree(tmp_path / "market")
    assert files["bounding_box_train/0002_c1s1_000001_00.jpg"] == picture(1)
    red = images.decode(files["bounding_box_train/0001_c1s1_000001_00.jpg"])
    assert np.abs(red.astype(int) - (200, 10, 10)).max() < 4


@pytest.mark.parametrize("layout", list(export.LAYOUTS))
def test_names_do_not_depend_on_the_files_of_the_table(tmp_path: Path, layout: str) -> None:
    rows = [row(i, f"own:{i % 3}", str(i % 2)) for i in range(12)]
    export.LAYOUTS[layout](write(tmp_path / "one", rows), tmp_path / "a")
    parts = tmp_path / "many"
    parts.mkdir()
    for number, start in enumerate(range(11, -1, -3)):
        some = [rows[i] for i in range(start, start - 3, -1)]
        pq.write_table(schema.observations(some), parts / f"part-{number}.parquet")
    export.LAYOUTS[layout](parts, tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_an_export_that_fails_leaves_nothing_and_the_next_one_clears_what_a_kill_left(
    tmp_path: Path,
) -> None:
    bad = row(1, "own:b", image=b"\x89PNG but no more")
    table = write(tmp_path / "t", [row(0, "own:a"), bad])
    with pytest.raises(ValueError, match="not a readable image"):
        export.vehiclex.write_vehiclex(table, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    (tmp_path / ".out.export" / "sys_image_train").mkdir(parents=True)
    (tmp_path / ".out.export" / "half.jpg").touch()
    export.imagefolder.write_imagefolder(table, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t"]
    assert not (tmp_path / "out" / "half.jpg").exists()


def test_a_folder_that_is_not_empty_is_refused_and_an_empty_one_is_filled(tmp_path: Path) -> None:
    table = write(tmp_path / "t", generated())
    with pytest.raises(ValueError, match="t' is not empty; give a new folder"):
        export.vehiclex.write_vehiclex(table, table)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file' is a file; give a new folder"):
        export.vehiclex.write_vehiclex(table, tmp_path / "file")
    (tmp_path / "out").mkdir()
    assert export.vehiclex.write_vehiclex(table, tmp_path / "out").images == 5


def test_a_table_without_labelled_images_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t", [row(0, None), row(1, None, split="unlabelled")])
    with pytest.raises(ValueError, match=r"nothing to export; left out: {'split unlabelled': 1, "):
        export.vehiclex.write_vehiclex(table, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_characters_that_xml_forbids_do_not_spoil_the_labels(tmp_path: Path) -> None:
    attributes = {"colour": "red\x00\nblue", "my note": "x", "imageName": "y", "ok": "a\tb\x1f"}
    rows = [row(i, f"own:{i}", attributes=attributes) for i in range(2)]
    export.vehiclex.write_vehiclex(write(tmp_path / "t", rows), tmp_path / "out")
    found = vehiclex.read_vehiclex(VehicleXSource(root=str(tmp_path / "out")))
    assert [r["attributes"]["ok"] for r in found.rows] == ["a\tb ", "a\tb "]


def test_the_command_exports_the_newest_table_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], publish_job: Callable[..., Path]
) -> None:
    assert tuple(export.LAYOUTS) == exchange_commands.LAYOUTS
    run, out = tmp_path / "run", tmp_path / "out"

    def command(*options: str) -> int:
        return cli.main(["export", str(run), str(out), "--layout", "vehiclex", *options])

    assert command() == cli.MISTAKE
    assert "is not a run directory" in capsys.readouterr().err
    for job, rows in (("ingest", read_in()), ("generate", generated())):
        write(publish_job(run, job) / "observations", rows)
    assert command() == 0
    said = capsys.readouterr().out
    assert f"{out}: 5 images of 2 identities on 1 cameras; licence: unknown\n" in said
    assert "left out: 1 images (unlabelled)" in said
    assert command("--table", "ingest") == cli.MISTAKE
    assert "is not empty" in capsys.readouterr().err
    assert command("--splits", "train") == cli.MISTAKE
    assert "has its own splits; --splits is for 'parquet'" in capsys.readouterr().err
    assert command("--layout", "parquet", "--splits", "query", "--table", "ingest") == cli.MISTAKE
    out = tmp_path / "table"
    assert command("--layout", "parquet", "--splits", "query", "--table", "ingest") == 0
    assert "1 images of 1 identities on 1 cameras" in capsys.readouterr().out
    out = tmp_path / "other"
    assert command("--table", "ingest") == 0
    assert "4 images of 2 identities on 3 cameras" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    table = tmp_path / "t"
    table.mkdir()
    for number in range(60):
        encoded = [b"\xff\xd8\xff" + noise.bytes(100_000) for _ in range(10)]
        rows = [row(10 * number + i, f"own:{i}", image=image) for i, image in enumerate(encoded)]
        file = table / f"part-{number:02d}.parquet"
        pq.write_table(schema.observations(rows), file, **storage.PARQUET)
    # A process of its own, because Arrow remembers the highest use of this one.
    probe = (
        "import sys; from pathlib import Path; import pyarrow as pa\n"
        "from ray_reid.datasets import export\n"
        "done = export.vehiclex.write_vehiclex(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(done.images, pa.default_memory_pool().max_memory())\n"
    )
    command = [sys.executable, "-c", probe, str(table), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    written, peak = map(int, done.stdout.split())
    assert written == 600
    # The images are 60 MB.
    assert peak < 20_000_000


@pytest.mark.parametrize("layout", sorted(export.LAYOUTS))
def test_images_made_from_those_whose_terms_forbid_it_are_not_exported(
    tmp_path: Path, layout: str
) -> None:
    terms = "research use only, no redistribution of derivatives (LTCC)"
    bound = row(0, "ltcc:1", "1", origin="synthetic", licence=terms)
    table = write(tmp_path / "bound", [bound, row(1, "ltcc:1", "2", licence=terms)])
    with pytest.raises(ValueError, match=r"1 of 2 images were generated .* may not be exported"):
        export.LAYOUTS[layout](table, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # The real images are their users' own affair.
    real = write(tmp_path / "real", [row(1, "ltcc:1", "2", licence=terms)])
    assert export.LAYOUTS[layout](real, tmp_path / "own").images == 1


@pytest.mark.parametrize(
    "terms",
    [
        "CC BY-ND 4.0",
        "CC BY-NC-ND 4.0",
        "no derivatives",
        "NoDerivs",
        "derivative works are not permitted",
        "Derivatives may not be passed on",
    ],
)
def test_other_terms_against_derivatives_are_known_too(tmp_path: Path, terms: str) -> None:
    table = write(tmp_path / "t", [row(0, "a:1", "1", origin="synthetic", licence=terms)])
    with pytest.raises(ValueError, match="may not be exported"):
        export.imagefolder.write_imagefolder(table, tmp_path / "out")
