import io
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import create_model

from ray_reid import images, schema, storage
from ray_reid.datasets import ingest, planning, sources
from ray_reid.datasets.readers import READERS
from ray_reid.datasets.readers.folder import FolderSource
from ray_reid.datasets.readers.miniature import MiniatureSource
from ray_reid.datasets.reading import LOCATOR
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import stage
from ray_reid.runtime.job import Work


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    return images.encode(pixels)


def crops(root: Path, identities: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(identities):
        for camera in (1, 2):
            (root / f"v{number:02d}_cam{camera}.jpg").write_bytes(picture(10 * number + camera))
    return root


def recipe(root: Path, **options: Any) -> Recipe:
    drawn = {"reader": "miniature", "num_train": 2, "num_test": 2, "cameras_per_identity": 2}
    both = [{"reader": "folder", "root": str(root), "name": "own"}, drawn]
    return recipes.validate({"name": "test", "ingest": {"sources": both, **options}})


def work(recipe: Recipe, out: Path) -> Work:
    out.mkdir(exist_ok=True)
    return Work(ingest.JOB.view(recipe), out, inputs={}, facts={})


def load(*locators: str) -> pa.Table:
    """What `Load` makes of some locators."""
    row = {"image": b"", "source": "own", "split": "train"}
    rows = [{**row, "observation_id": str(number)} for number in range(len(locators))]
    plan = schema.observations(rows).drop_columns(["image"])
    plan = plan.append_column(planning.PLAN.field(LOCATOR), pa.array(locators, pa.string()))
    return stage._Adapter(ingest.Load, {})(plan)


def reason(path: Path, content: bytes) -> str | None:
    path.write_bytes(content)
    found: str | None = load(str(path))["drop_reason"][0].as_py()
    return found


# Loading


def test_load_keeps_the_bytes_of_a_readable_image(tmp_path: Path) -> None:
    file = crops(tmp_path, 1) / "v00_cam1.jpg"
    found = load(str(file))
    assert found.column_names == schema.OBSERVATION.names
    assert found["image"][0].as_py() == file.read_bytes()
    assert found["drop_reason"].null_count == 1


def test_load_marks_what_is_no_whole_image(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    assert reason(file, picture(0)) is None
    for content in (b"", b"\xff\xd8", b"plain text that is named like an image"):
        assert str(reason(file, content)).startswith("corrupt image: not a readable image")


@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("WEBP", {})],
)
def test_load_notices_a_truncated_file(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture(1, (200, 160)))) as image:
        image.save(buffer, form, **options)
    whole = buffer.getvalue()
    assert reason(tmp_path / "a.jpg", whole) is None
    # Decoding to a small size may skip detail but must still reach the end of the data.
    for missing in (40, len(whole) // 10, len(whole) // 2, len(whole) - 30):
        found = reason(tmp_path / "a.jpg", whole[: len(whole) - missing])
        assert str(found).startswith("corrupt image"), missing


def test_load_survives_a_header_of_absurd_size(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "BMP")
    bomb = bytearray(buffer.getvalue())
    bomb[18:26] = struct.pack("<ii", 60_000, 60_000)  # width and height
    assert "pixels" in str(reason(tmp_path / "a.bmp", bytes(bomb)))


def test_load_keeps_a_row_whose_file_has_gone(tmp_path: Path) -> None:
    found = load(str(tmp_path / "gone.jpg"))
    assert found["image"].to_pylist() == [b""]
    assert found["drop_reason"].to_pylist() == [
        "corrupt image: cannot be read: No such file or directory"
    ]


def test_load_fills_in_what_only_the_drawing_knows() -> None:
    source = MiniatureSource(num_train=2, num_test=2)
    batch = schema.to_batch(planning.plan([source]).slice(0, 2))
    found = schema.to_table(ingest.Load()(batch))
    assert found["view"].null_count == found["time"].null_count == 0
    assert dict(found["attributes"][0].as_py()).keys() >= {"colour"}
    assert images.decode(found["image"][0].as_py()).shape == (64, 64, 3)


# The job


def test_ingest_writes_every_image_once_and_counts(ray_local: None, tmp_path: Path) -> None:
    root = crops(tmp_path / "own", 8)
    (root / "v03_cam1.jpg").write_bytes(picture(3)[:200])
    (root / "notes_only.png").write_bytes(b"")
    made = work(recipe(root, max_corrupt_fraction=0.5), tmp_path / "out")
    facts = ingest.ingest_job(made)

    table = storage.read(made.out / "observations", schema.OBSERVATION.names, kept_only=False)
    assert table.num_rows == 16 + 16
    assert table.schema.types == schema.OBSERVATION.types
    assert facts.dropped == {"corrupt image": 1}
    kept = storage.read(made.out / "observations", ["split"])["split"].to_pylist()
    assert {split: count.images for split, count in facts.counts.items()} == {
        split: kept.count(split) for split in set(kept)
    }
    assert facts.counts["train"].cameras > 2
    assert any("1 of 17 image names" in warning for warning in facts.warnings)
    found = "1 of 32 images (3.1%) are corrupt and left out; the first is 'v03_cam1.jpg': not a "
    assert sum(warning.startswith(found) for warning in facts.warnings) == 1
    assert facts.fingerprint.rows == 32
    assert type(facts).model_validate_json(facts.model_dump_json()) == facts

    # The table is complete, so a repeated attempt only counts again.
    assert ingest.ingest_job(made) == facts
    strict = work(recipe(root, max_corrupt_fraction=0.01), tmp_path / "out")
    message = (
        r"1 of 32 images \(3.1%\) are corrupt, more than ingest.max_corrupt_fraction 0.01 allows; "
        "the first is 'v03_cam1.jpg': not a readable image"
    )
    with pytest.raises(ValueError, match=message):
        ingest.ingest_job(strict)


def test_the_plan_of_a_killed_attempt_is_used_again(tmp_path: Path) -> None:
    root = crops(tmp_path / "own", 4)
    made = work(recipe(root), tmp_path / "out")
    (made.out / "plan").mkdir()
    (made.out / "plan" / "part-0.parquet").write_bytes(b"PAR1")  # what a kill while writing leaves
    plan = ingest._plan(made)
    assert plan.num_rows > 0
    crops(root, 5)
    assert ingest._plan(made).equals(plan)


def test_what_corruption_leaves_must_still_be_a_test_set() -> None:
    row = {"image": b"", "source": "own", "role": "normal"}
    rows = [
        {**row, "identity": "own:a", "camera": "1", "split": "train"},
        {**row, "identity": "own:b", "camera": "1", "split": "train"},
        {**row, "identity": "own:c", "camera": "1", "split": "query"},
        {**row, "identity": "own:c", "camera": "2", "split": "gallery"},
    ]
    table = schema.observations(
        [{**row, "observation_id": str(place)} for place, row in enumerate(rows)]
    )
    assert ingest._check_kept(table, 5) == []
    with pytest.raises(ValueError, match="what is left of 5 images has 1 train identities"):
        ingest._check_kept(table.slice(1), 5)
    with pytest.raises(ValueError, match="none of the 1 queries of what is left of 5 images"):
        ingest._check_kept(table.slice(0, 3), 5)


def test_the_first_of_the_corrupt_images_is_named_with_its_own_reason(tmp_path: Path) -> None:
    root = crops(tmp_path / "own", 8)
    made = recipe(root, max_corrupt_fraction=0.1)
    plan = planning.plan(sources.resolve(made.ingest.sources))
    record = [
        {k: v for k, v in row.items() if k != LOCATOR} | {"image": b"", "attributes": None}
        for row in plan.to_pylist()
    ]
    assert ingest._check_corrupt(schema.observations(record), plan, made) == []
    places = {row["observation_id"]: Path(row[LOCATOR]).name for row in plan.to_pylist()}
    for row in record:
        if places[row["observation_id"]] in ("v02_cam2.jpg", "v05_cam1.jpg"):
            row["drop_reason"] = f"corrupt image: reason of {places[row['observation_id']]}"
    assert ingest._check_corrupt(schema.observations(record), plan, made) == [
        "2 of 32 images (6.2%) are corrupt and left out; the first is 'v02_cam2.jpg': reason of "
        "v02_cam2.jpg"
    ]


# The fingerprint of outside files


def test_outside_changes_with_the_files_and_not_with_their_place(tmp_path: Path) -> None:
    root = crops(tmp_path / "own", 4)
    before = ingest.outside(recipe(root))
    assert ingest.outside(recipe(root)) == before
    moved = root.rename(tmp_path / "moved")
    assert ingest.outside(recipe(moved)) == before
    os.utime(moved / "v00_cam1.jpg", ns=(1, 1))
    touched = ingest.outside(recipe(moved))
    assert touched != before
    (moved / "v00_cam2.jpg").write_bytes(b"shorter")
    assert ingest.outside(recipe(moved)) != touched


def test_outside_and_loading_survive_a_broken_link(tmp_path: Path) -> None:
    root = crops(tmp_path / "own", 4)
    (root / "v04_cam1.jpg").symlink_to(tmp_path / "gone.jpg")
    broken = ingest.outside(recipe(root))
    assert ingest.outside(recipe(root)) == broken
    (tmp_path / "gone.jpg").write_bytes(picture(1))
    assert ingest.outside(recipe(root)) != broken


def test_outside_reads_the_lists(tmp_path: Path) -> None:
    root = crops(tmp_path / "own", 4)
    source = {"reader": "folder", "root": str(root), "train_list": "train.txt"}
    made = recipes.validate({"name": "test", "ingest": {"sources": [source]}})
    with pytest.raises(ValueError, match=r"cannot read the list .*train.txt"):
        ingest.outside(made)
    (root / "train.txt").write_text("v00_cam1.jpg\n")
    before = ingest.outside(made)
    os.utime(root / "train.txt", ns=(1, 1))
    assert ingest.outside(made) == before
    (root / "train.txt").write_text("v01_cam1.jpg\n")
    assert ingest.outside(made) != before


def test_outside_changes_with_every_option_and_every_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(crops(tmp_path / "own", 4))
    before = ingest.outside(made)
    values = made.model_dump(mode="json")
    values["ingest"]["sources"][0]["seed"] = 1
    assert ingest.outside(recipes.validate(values)) != before
    # A later version of the reader may have another default, and the recipe does not write it.
    later = create_model("Later", __base__=FolderSource, test_fraction=(float, 0.4))
    layout = replace(READERS["folder"], source=later)
    monkeypatch.setattr(sources, "READERS", {**READERS, "folder": layout})
    assert ingest.outside(made) != before


# The check before any job


def test_a_recipe_without_a_data_set_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"^the profile 'photographs' of the recipe 'baseline' has no data set; give a folder "
        r"of images with --data FOLDER, or list data sets under ingest\.sources$",
    ):
        ingest.check(recipes.load("baseline", "photographs"))


def test_every_other_shipped_profile_names_its_data_set() -> None:
    drawn = {}
    for file in recipes.RECIPES.glob("*.yaml"):
        for profile in recipes.read_yaml(file).get("profiles", {}):
            if profile in ("photographs", "photographs_pretrained"):
                continue
            made = recipes.load(file.stem, profile)
            ingest.check(made)
            readers = {source.reader for source in made.ingest.sources}
            drawn[file.stem, profile] = "miniature" in readers
    assert {profile for (_, profile), is_drawn in drawn.items() if is_drawn} == {
        "miniature",
        "study",
        "vehicles",
    }
    assert not any(is_drawn for (_, profile), is_drawn in drawn.items() if profile == "paper")
