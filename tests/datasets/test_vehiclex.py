import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_reid import images
from ray_reid.datasets import ingest, planning, sources
from ray_reid.datasets.readers import vehiclex
from ray_reid.datasets.readers.vehiclex import VehicleXSource
from ray_reid.datasets.reading import Reading
from ray_reid.recipe import recipes
from ray_reid.runtime import stage

ITEM = (
    '<Item typeID="{kind}" imageName="{name}" cameraID="c006" vehicleID="{vehicle}" colorID="1" '
    'orientation="123.4" lightInt="0.5" lightDir="60.0" camHei="3.1" camDis="12.1" />'
)


def labels(file: Path, *items: str, encoding: str = "utf-8") -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n<TrainingImages Version="1.0">\n'
    text += f'<Items number="-">\n{"".join(items)}\n</Items>\n</TrainingImages>\n'
    file.write_bytes(text.encode("ascii"))


def item(name: str, vehicle: str, kind: str = "0") -> str:
    return ITEM.format(name=name, vehicle=vehicle, kind=kind)


def vehicles(root: Path) -> Path:
    """Two vehicles with two images each, as the AI City Challenge hands them out."""
    place = root / "sys_image_train"
    place.mkdir(parents=True)
    names = ["00001_c006_1.jpg", "00001_c006_2.jpg", "00012_c006_1.jpg", "00012_c006_2.jpg"]
    for number, name in enumerate(names):
        pixels = np.full((16, 16, 3), 40 * number, dtype=np.uint8)
        (place / name).write_bytes(images.encode(pixels))
    labels(root / "train_label.xml", *(item(name, name[1:5]) for name in names))
    return root


def read(root: Path, **options: Any) -> Reading:
    return vehiclex.read_vehiclex(VehicleXSource(root=str(root), **options))


def by_name(found: Reading) -> dict[str, Mapping[str, Any]]:
    return {Path(row["locator"]).name: row for row in found.rows}


def test_vehicle_and_camera_come_from_the_name_and_attributes_from_the_labels(
    tmp_path: Path,
) -> None:
    found = read(vehicles(tmp_path), licence="research")
    assert found.warnings == []
    row = by_name(found)["00012_c006_2.jpg"]
    assert (row["identity"], row["camera"]) == ("vehiclex:12", "6")
    assert (row["split"], row["origin"], row["licence"]) == ("train", "synthetic", "research")
    assert row["attributes"] == {
        "body_style_id": "0",
        "colour_id": "1",
        "orientation": "123.4",
        "light_intensity": "0.5",
        "light_direction": "60.0",
        "camera_height": "3.1",
        "camera_distance": "12.1",
    }


def test_lists_beside_the_labels_name_colours_and_types(tmp_path: Path) -> None:
    root = vehicles(tmp_path)
    (root / "list_color.txt").write_text("0 yellow\n1 dark orange\n")
    (root / "list_type.txt").write_text("1 suv\n\n")
    attributes = by_name(read(root))["00001_c006_1.jpg"]["attributes"]
    assert attributes["colour"] == "dark orange"
    assert attributes["body_style_id"] == "0"
    assert "colour_id" not in attributes


def test_labels_of_an_encoding_that_the_parser_does_not_know_are_read(tmp_path: Path) -> None:
    root = vehicles(tmp_path)
    labels(root / "train_label.xml", item("00001_c006_1.jpg", "0001"), encoding="gb2312")
    assert by_name(read(root))["00001_c006_1.jpg"]["attributes"]["orientation"] == "123.4"


def test_images_and_entries_that_do_not_meet_are_counted(tmp_path: Path) -> None:
    root = vehicles(tmp_path)
    place = root / "sys_image_train"
    (place / "00003_c001_1.jpg").touch()
    (place / "cover.jpg").touch()
    entries = [item("00001_c006_1.jpg", "0001"), item("00001_c006_2.jpg", "0002")]
    labels(root / "train_label.xml", *entries, item("00077_c006_1.jpg", "0077"), "<Item/>")
    found = read(root)
    assert {name: row["identity"] for name, row in by_name(found).items()} == {
        "00001_c006_1.jpg": "vehiclex:1",
        "00003_c001_1.jpg": "vehiclex:3",
        "00012_c006_1.jpg": "vehiclex:12",
        "00012_c006_2.jpg": "vehiclex:12",
    }
    assert by_name(found)["00003_c001_1.jpg"]["attributes"] is None
    strange, wrong, plain, idle = found.warnings
    assert strange.startswith("1 of 6 images")
    assert "e.g. 'cover.jpg'; they are left out" in strange
    assert "another vehicle or camera in the labels, e.g. '00001_c006_2.jpg'; they are" in wrong
    assert plain.startswith("4 of 6 images")
    assert "have no entry in train_label.xml, e.g. " in plain
    assert idle.startswith("1 of 3 entries of train_label.xml name no image")
    assert "e.g. '00077_c006_1.jpg'" in idle


def test_images_without_any_labels_are_read_by_their_names(tmp_path: Path) -> None:
    root = vehicles(tmp_path)
    (root / "train_label.xml").unlink()
    found = read(root)
    assert {row["identity"] for row in found.rows} == {"vehiclex:1", "vehiclex:12"}
    (warning,) = found.warnings
    assert "has no .xml file of labels; its images have no attributes" in warning


def test_labels_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    root = vehicles(tmp_path)
    (root / "other.xml").write_text("<Items><Item></Items>")
    with pytest.raises(ValueError, match=r"2 \.xml files; set labels to one of \['other\.xml', 't"):
        read(root)
    with pytest.raises(ValueError, match=r"other\.xml' are not XML in UTF-8: mismatched tag"):
        read(root, labels="other.xml")
    with pytest.raises(ValueError, match=r"labels 'none\.xml' is no file of"):
        read(root, labels="none.xml")
    (root / "other.xml").write_text("<Items/>")
    with pytest.raises(ValueError, match="hold no <Item imageName"):
        read(root, labels="other.xml")
    (root / "list_color.txt").write_text("0 red\nyellow 1\n")
    with pytest.raises(ValueError, match=r"list_color\.txt', line 2: 'yellow 1' is not"):
        read(root, labels="train_label.xml")


def test_a_folder_without_such_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match="holds no image with a name like 00001_c006_1"):
        read(tmp_path)
    (tmp_path / "00001_c006_1.jpg").touch()
    with pytest.raises(ValueError, match="has 1 train identities"):
        read(tmp_path)


def test_whatever_a_reading_depends_on_is_in_the_fingerprint(tmp_path: Path) -> None:
    root = vehicles(tmp_path)
    recipe = recipes.validate(
        {"name": "x", "ingest": {"sources": [{"reader": "vehiclex", "root": str(root)}]}}
    )
    seen = [ingest.outside(recipe)]
    (root / "list_type.txt").write_text("0 sedan\n")
    seen.append(ingest.outside(recipe))
    labels(root / "train_label.xml", item("00001_c006_1.jpg", "0001"))
    seen.append(ingest.outside(recipe))
    (root / "sys_image_train" / "00012_c006_1.jpg").unlink()
    seen.append(ingest.outside(recipe))
    assert len(set(seen)) == 4
    assert ingest.outside(recipe) == seen[-1]


def test_rows_become_observations_beside_those_of_another_source(tmp_path: Path) -> None:
    sources = [
        VehicleXSource(root=str(vehicles(tmp_path / "a"))),
        VehicleXSource(root=str(vehicles(tmp_path / "b")), name="adapted"),
    ]
    plan = planning.plan(sources)
    table = stage._Adapter(ingest.Load, {})(pickle.loads(pickle.dumps(plan)))
    assert table.num_rows == 8
    assert len(set(table["identity"].to_pylist())) == 4
    assert set(table["origin"].to_pylist()) == {"synthetic"}
    assert dict(table["attributes"][0].as_py())["orientation"] == "123.4"


def test_an_unknown_key_of_the_source_names_the_choices() -> None:
    source = {"reader": "vehiclex", "root": "x", "label": "y"}
    made = recipes.validate({"name": "x", "ingest": {"sources": [source]}})
    with pytest.raises(ValueError, match=r"vehiclex\.label'; choose from \['labels', 'licence'"):
        sources.resolve(made.ingest.sources)
