from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from ray_reid import images, schema
from ray_reid.datasets import planning, sources
from ray_reid.datasets.loading import load
from ray_reid.datasets.readers import READERS, cityflow, compcars, vehicleid, veri776, veriwild
from ray_reid.datasets.readers.cityflow import CityFlowSource
from ray_reid.datasets.readers.compcars import CompCarsSource
from ray_reid.datasets.readers.market1501 import Market1501Source
from ray_reid.datasets.readers.vehicleid import VehicleIDSource
from ray_reid.datasets.readers.vehiclex import VehicleXSource
from ray_reid.datasets.readers.veri776 import VeRi776Source
from ray_reid.datasets.readers.veriwild import VERIWildSource
from ray_reid.datasets.reading import ReaderSource, Reading, Row


def touch(root: Path, *names: str) -> Path:
    """Empty files; a reader looks at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(file: Path, *lines: str, encoding: str = "utf-8") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return file


def items(file: Path, *entries: Mapping[str, str]) -> None:
    """Labels as the first sets have them: with a declaration that expat refuses."""
    lines = [" ".join(f'{key}="{value}"' for key, value in entry.items()) for entry in entries]
    write(
        file,
        '<?xml version="1.0" encoding="gb2312"?>',
        '<TrainingImages Version="1.0">',
        f'<Items number="{len(entries)}">',
        *(f"<Item {line} />" for line in lines),
        "</Items></TrainingImages>",
        encoding="gb2312",
    )


def by_name(found: Reading) -> dict[str, Row]:
    """Rows by the folder and base name of their files."""
    places = [Path(row["locator"]) for row in found.rows]
    return {
        f"{place.parent.name}/{place.name}": row
        for place, row in zip(places, found.rows, strict=True)
    }


def counts(rows: Sequence[Row]) -> dict[str, int]:
    return dict(Counter(row["split"] for row in rows))


# VeRi-776


def veri(root: Path) -> Path:
    """Two train and two test vehicles on cameras 2 and 12, with everything beside them."""
    train = [f"000{v}_c0{c}_0001645{v}_0.jpg" for v in (1, 3) for c in ("02", "12")]
    test = [f"000{v}_c0{c}_0003060{v}_{k}.jpg" for v in (2, 5) for c in ("02", "12") for k in "01"]
    query = [name for name in test if name.endswith("_0.jpg") and "c002" in name]
    for folder, names in (("train", train), ("test", test), ("query", query)):
        touch(root / f"image_{folder}", *names)
        write(root / f"name_{folder}.txt", *(f"{name} " for name in names))
    for split, names in (("train", train), ("test", test)):
        entries = [
            {
                "imageName": name,
                "vehicleID": name[:4],
                "cameraID": name[5:9],
                "colorID": "10",
                "typeID": "4",
            }
            for name in names
        ]
        items(root / f"{split}_label.xml", *entries)
    write(root / "list_color.txt", "1 yellow", "10 black")
    write(root / "list_type.txt", "1 sedan", "4 hatchback")
    lines = [
        f"{v}_c0{c} " + " ".join(n for n in test if n.startswith(f"{v}_c0{c}")) + " "
        for v in ("0002", "0005")
        for c in ("02", "12")
    ]
    write(root / "test_track.txt", *lines)
    return root


def read_veri(root: Path) -> Reading:
    return veri776.read_veri776(VeRi776Source(root=str(root)))


def test_veri_has_cameras_of_three_digits_attributes_and_tracks(tmp_path: Path) -> None:
    found = read_veri(veri(tmp_path / "VeRi").parent)
    (blind,) = found.warnings
    assert "every view is null, so a network that learns vectors of cameras and views" in blind
    assert counts(found.rows) == {"train": 4, "query": 2, "gallery": 8}
    row = by_name(found)["image_test/0005_c012_00030605_1.jpg"]
    assert (row["identity"], row["camera"]) == ("veri776:0005", "12")
    assert row["attributes"] == {"colour": "black", "body_style": "hatchback"}
    assert row["licence"] == "research use only, no redistribution (VeRi-776)"
    assert row["view"] is None
    tracks = {name: row["track"] for name, row in by_name(found).items()}
    assert tracks["image_test/0005_c012_00030605_1.jpg"] == "test4"
    assert tracks["image_test/0005_c012_00030605_0.jpg"] == "test4"
    assert tracks["image_query/0002_c002_00030602_0.jpg"] == "test1"
    assert tracks["image_train/0001_c002_00016451_0.jpg"] is None
    assert veri776.LAYOUT.official(VeRi776Source(root="x"))["gallery"] == (11579, 200)


def test_no_image_of_veri_is_dropped_for_want_of_a_viewpoint(tmp_path: Path) -> None:
    root = veri(tmp_path)
    points = " ".join(["-1 -1"] * 20)
    name = "0002_c002_00030602_0.jpg"
    write(
        root / "keypoint_test.txt",
        f"VeRi/image_test/{name} {points} 7",
        f"VeRi/image_test/0002_c002_00030602_1.jpg {points} -1",
        f"VeRi/image_test/0002_c012_00030602_0.jpg {' '.join(['3 4'] * 20)}",
    )
    found = read_veri(root)
    views = {place: row["view"] for place, row in by_name(found).items() if row["view"]}
    assert views == {f"image_test/{name}": "7", f"image_query/{name}": "7"}
    assert len(found.rows) == 14
    assert found.warnings[0].startswith("12 of 14 images")
    assert "have no viewpoint; their view is null" in found.warnings[0]


def test_what_lists_and_folders_of_veri_do_not_share_is_counted(tmp_path: Path) -> None:
    root = veri(tmp_path)
    train = (root / "name_train.txt").read_text().splitlines()
    bare = [name.strip().removesuffix(".jpg") for name in train]
    write(root / "name_train.txt", *bare, "", "0099_c001_00000001_0.jpg")
    touch(root / "image_train", "0001_c005_00099999_0.jpg", "Thumbs.db")
    (root / "name_test.txt").unlink()
    touch(root / "image_test", "cover.jpg", "0002_c2_00030602_0.jpg")
    found = read_veri(root)
    assert counts(found.rows) == {"train": 4, "query": 2, "gallery": 8}
    unlisted, lost, strange, _ = found.warnings
    assert unlisted.startswith("1 images of")
    assert "are not in name_train.txt, e.g. '0001_c005_00099999_0.jpg'; they are left" in unlisted
    assert lost.startswith("1 of 5 names in name_train.txt are no image of image_train of")
    assert strange.startswith("2 images of")
    write(root / "name_train.txt", "other.jpg")
    with pytest.raises(ValueError, match=r"name_train\.txt' names none of the 5 images of image_t"):
        read_veri(root)


def test_veri_is_read_from_its_names_alone(tmp_path: Path) -> None:
    root = veri(tmp_path)
    for file in [*root.glob("*.txt"), *root.glob("*.xml")]:
        file.unlink()
    found = read_veri(root)
    assert ["no viewpoints" in text for text in found.warnings] == [True]
    assert counts(found.rows) == {"train": 4, "query": 2, "gallery": 8}
    assert {row["attributes"] for row in found.rows} == {None}


def test_labels_in_gb2312_are_read_and_broken_ones_are_one_sentence(tmp_path: Path) -> None:
    root = veri(tmp_path)
    name = "0001_c002_00016451_0.jpg"
    items(root / "train_label.xml", {"imageName": name, "colorID": "7", "owner": "\u8f66"}, {})
    write(root / "list_color.txt", "7 \u9ed1", encoding="gb2312")
    found = read_veri(root)
    row = by_name(found)[f"image_train/{name}"]
    assert row["attributes"] == {"colour": "\u9ed1", "owner": "\u8f66"}
    assert found.warnings[0].startswith("3 of 14 images")
    assert "have no attributes in the labels" in found.warnings[0]
    write(root / "train_label.xml", "<Items><Item></Items>")
    with pytest.raises(ValueError, match=r"train_label\.xml' are not XML in UTF-8: mismatched"):
        read_veri(root)
    (root / "train_label.xml").write_bytes(b"<Items>\xff\xff</Items>")
    with pytest.raises(ValueError, match=r"train_label\.xml' is text neither in UTF-8 nor in GB"):
        read_veri(root)


def test_a_malformed_item_costs_no_other_one(tmp_path: Path) -> None:
    root = veri(tmp_path)
    file = root / "train_label.xml"
    lines = file.read_text().splitlines()
    assert sum("<Item " in line for line in lines) == 4
    first = next(place for place, line in enumerate(lines) if "<Item " in line)
    lines[first] = lines[first].replace('"10"', '"10')
    lines[first + 1] = lines[first + 1].replace("/>", "")
    file.write_text("\n".join(lines[:-1]))
    found = read_veri(root)
    assert sum(row["attributes"] is None for row in found.rows) == 1
    assert found.warnings[0].startswith("1 of 14 images")
    assert found.warnings[1].startswith(f"labels {str(file)!r} are not well-formed XML (not well-")
    lost = f"1 of 4 items cannot be read and are left out, the first in line {first + 1}"
    assert found.warnings[1].endswith(lost)


def test_times_of_veri_are_the_frames_of_its_names(tmp_path: Path) -> None:
    root = veri(tmp_path)
    row = by_name(read_veri(root))["image_test/0005_c012_00030605_1.jpg"]
    assert row["time"] == 30605 / 25
    slow = VeRi776Source(root=str(root), frames_per_second=10)
    assert (
        by_name(veri776.read_veri776(slow))["image_test/0005_c012_00030605_1.jpg"]["time"] == 3060.5
    )


# VehicleID


def vehicle_id(root: Path) -> Path:
    """Two train vehicles; three test vehicles with 1, 2 and 5 images."""
    test = {"0000101": "7", **{f"000020{i}": "8" for i in range(2)}}
    test |= {f"000030{i}": "9" for i in range(5)}
    train = {"0000001": "1", "0000002": "1", "0000003": "2"}
    touch(root / "image", *(f"{name}.jpg" for name in {**train, **test}))
    lists = root / "train_test_split"
    write(lists / "train_list.txt", *(f"{name} {v}" for name, v in train.items()))
    write(lists / "test_list_800.txt", *(f"{name}.jpg {v} " for name, v in test.items()))
    write(lists / "test_list_1600.txt", *(f"{name} {v}" for name, v in test.items() if v == "9"))
    write(root / "attribute/model_attr.txt", "1 17", "9 249")
    write(root / "attribute/model_names.txt", "Audi A6L 17", "what is this")
    write(root / "attribute/color_attr.txt", "9 6")
    write(root / "attribute/color_names.txt", "blue 6")
    return root


def read_vehicle_id(root: Path, **options: Any) -> Reading:
    return vehicleid.read_vehicleid(VehicleIDSource(root=str(root), **options))


def test_vehicleid_puts_one_image_of_a_vehicle_into_the_gallery(tmp_path: Path) -> None:
    found = read_vehicle_id(vehicle_id(tmp_path))
    assert found.warnings == []
    assert counts(found.rows) == {"train": 3, "query": 5, "gallery": 3}
    gallery = [row["identity"] for row in found.rows if row["split"] == "gallery"]
    assert sorted(gallery) == ["vehicleid:7", "vehicleid:8", "vehicleid:9"]
    assert {row["camera"] for row in found.rows} == {None}
    rows = by_name(found)
    assert rows["image/0000001.jpg"]["attributes"] == {"model": "Audi A6L"}
    assert rows["image/0000300.jpg"]["attributes"] == {"model_id": "249", "colour": "blue"}
    assert rows["image/0000101.jpg"]["attributes"] is None


def test_the_stored_split_of_vehicleid_is_draw_0_of_the_protocol(tmp_path: Path) -> None:
    rows = read_vehicle_id(vehicle_id(tmp_path)).rows
    test = [row for row in rows if row["split"] != "train"]
    identities = [row["identity"] for row in test]
    ids = [row["observation_id"] for row in test]
    stored = {row["observation_id"] for row in test if row["split"] == "gallery"}
    assert vehicleid.drawn_gallery(identities, ids, seed=0) == stored
    assert vehicleid.drawn_gallery(identities[::-1], ids[::-1], seed=0) == stored
    draws = {frozenset(vehicleid.drawn_gallery(identities, ids, seed)) for seed in range(10)}
    assert len(draws) > 3
    assert {len(draw) for draw in draws} == {3}


def test_draws_choose_every_image_about_equally_often() -> None:
    ids = [schema.observation_id("x", place) for place in range(4)]
    chosen = Counter(one for s in range(2000) for one in vehicleid.drawn_gallery(["a"] * 4, ids, s))
    assert all(420 < chosen[one] < 580 for one in ids)


def test_the_test_size_of_vehicleid_is_a_list(tmp_path: Path) -> None:
    root = vehicle_id(tmp_path)
    found = read_vehicle_id(root, test_size=1600)
    assert counts(found.rows) == {"train": 3, "query": 4, "gallery": 1}
    with pytest.raises(ValueError, match=r"lacks \['train_test_split/test_list_2400\.txt'\]"):
        read_vehicle_id(root, test_size=2400)
    official = vehicleid.LAYOUT.official
    assert official(VehicleIDSource(root="x", test_size=2400))["query"] == (17377, 2400)
    assert official(VehicleIDSource(root="x", test_size=6000)) == {"train": (113346, 13164)}
    # The train list and this one are all 221,567 images of 26,328 vehicles.
    whole = official(VehicleIDSource(root="x", test_size=13164))
    assert sum(images for images, _ in whole.values()) == 221567
    assert whole["train"][1] + whole["gallery"][1] == 26328


def test_lists_of_vehicleid_that_do_not_fit_are_named(tmp_path: Path) -> None:
    root = vehicle_id(tmp_path)
    (root / "image/0000003.jpg").unlink()
    write(root / "train_test_split/train_list.txt", "0000001 1", "0000002 2", "0000003 2")
    (warning,) = read_vehicle_id(root).warnings
    assert warning.startswith("1 of 3 names in train_test_split/train_list.txt are no image of")
    write(root / "train_test_split/train_list.txt", "0000001 1", "0000002 2", "0000101 3")
    with pytest.raises(ValueError, match=r"'0000101\.jpg' of .* is in both the train and the test"):
        read_vehicle_id(root)
    write(root / "train_test_split/train_list.txt", "0000001 1", "0000002 7")
    with pytest.raises(
        ValueError, match=r"1 identities of .* are in both train and test, e.g. '7'"
    ):
        read_vehicle_id(root)
    write(root / "train_test_split/train_list.txt", "0000001 1", "0000002")
    with pytest.raises(ValueError, match=r"train_list\.txt', line 2: '0000002' is not `name v"):
        read_vehicle_id(root)


# VERI-Wild


def veri_wild(root: Path) -> Path:
    """Two train and two test vehicles with three images each; test_3000 holds the queries."""
    names = {
        v: [f"{v}/{v[-1]}0{k}" for k in (1, 2, 3)] for v in ("00001", "00002", "30001", "30002")
    }
    touch(root / "images", *(f"{name}.jpg" for group in names.values() for name in group))
    lists = root / "train_test_split"
    write(lists / "train_list.txt", *names["00001"], *(f"{name}.jpg" for name in names["00002"]))
    test = [f"{name}.jpg " for v in ("30001", "30002") for name in names[v]]
    write(lists / "test_3000.txt", *test)
    write(lists / "test_3000_query.txt", *(names[v][0] for v in ("30001", "30002")))
    lines = [
        f"{name};{k};2018-03-1{k} 07:44:3{k};Audi A4;SUV;white"
        for group in names.values()
        for k, name in enumerate(group, start=1)
    ]
    write(lists / "vehicle_info.txt", "id/image;Camera ID;Time;Model;Type;Color", *lines)
    return root


def read_wild(root: Path, **options: Any) -> Reading:
    return veriwild.read_veriwild(VERIWildSource(root=str(root), **options))


def test_veriwild_reads_camera_time_and_attributes(tmp_path: Path) -> None:
    found = read_wild(veri_wild(tmp_path))
    rows = by_name(found)
    one, two = rows["00001/101.jpg"], rows["00001/102.jpg"]
    assert (one["identity"], one["camera"], two["camera"]) == ("veriwild:00001", "1", "2")
    assert two["time"] - one["time"] == 24 * 3600 + 1
    assert one["attributes"] == {"model": "Audi A4", "body_style": "SUV", "colour": "white"}


def test_queries_that_the_gallery_list_of_veriwild_holds_are_queries_only(tmp_path: Path) -> None:
    root = veri_wild(tmp_path)
    found = read_wild(root)
    assert counts(found.rows) == {"train": 6, "query": 2, "gallery": 4}
    (warning,) = found.warnings
    assert warning.startswith("2 images of")
    assert "are in both test lists, e.g. '30001/101'; they are queries" in warning
    write(root / "train_test_split/test_3000.txt", "30001/102", "30001/103", "30002/202")
    found = read_wild(root)
    assert found.warnings == []
    assert counts(found.rows) == {"train": 6, "query": 2, "gallery": 3}
    official = veriwild.LAYOUT.official(VERIWildSource(root="x", test_size=5000))
    assert official["gallery"] == (64389, 5000)


def test_veriwild_is_read_with_the_lists_of_the_later_release(tmp_path: Path) -> None:
    root = veri_wild(tmp_path)
    lists = root / "train_test_split"
    later = {
        "train_list.txt": "train_list_start0.txt",
        "test_3000.txt": "test_3000_id.txt",
        "test_3000_query.txt": "test_3000_id_query.txt",
    }
    plain = read_wild(root)
    for old, new in later.items():
        write(lists / new, *(f"{line.strip()} 0 5" for line in (lists / old).open()))
        (lists / old).unlink()
    assert read_wild(root).rows == plain.rows
    (lists / "test_3000_id.txt").unlink()
    with pytest.raises(ValueError, match=r"has neither 'test_3000\.txt' nor 'test_3000_id\.txt'"):
        read_wild(root)


def test_a_shot_of_veriwild_that_says_little_is_kept_and_counted(tmp_path: Path) -> None:
    root = veri_wild(tmp_path)
    info = root / "train_test_split/vehicle_info.txt"
    lines = info.read_text().splitlines()
    lines[1] = "00001/101.jpg;17;yesterday;;;red"
    lines[2] = "00001/102;3;2018-13-01 00:00:00"
    info.write_bytes("\n".join([*lines[:-1], ""]).replace("Audi", "\u5965\u8fea").encode("gbk"))
    found = read_wild(root)
    rows = by_name(found)
    one = rows["00001/101.jpg"]
    assert (one["camera"], one["time"], one["attributes"]) == ("17", None, {"colour": "red"})
    assert (rows["00001/102.jpg"]["camera"], rows["00001/102.jpg"]["attributes"]) == ("3", None)
    last = rows["30002/203.jpg"]
    assert (last["camera"], last["time"], last["attributes"]) == (None, None, None)
    cameras, times = found.warnings[1:]
    assert cameras.startswith("1 of 12 images")
    assert "have no camera in train_test_split/vehicle_info.txt" in cameras
    assert times.startswith("3 of 12 images")


def test_a_name_of_veriwild_without_an_image_is_counted(tmp_path: Path) -> None:
    root = veri_wild(tmp_path)
    (root / "images/30002/202.jpg").unlink()
    (warning, _) = read_wild(root).warnings
    assert warning.startswith("1 of 6 names in the gallery list are no image of")
    assert "e.g. '30002/202'" in warning


# CityFlow


def city_flow(root: Path, vehicles: int = 6) -> Path:
    """Vehicles with two images on each of two cameras; test images that nobody knows."""
    entries = []
    for vehicle in range(vehicles):
        for shot in range(4):
            name = f"{4 * vehicle + shot + 1:06d}.jpg"
            camera = f"c0{10 + shot // 2}"
            entries.append(
                {"imageName": name, "vehicleID": f"{vehicle + 7:04d}", "cameraID": camera}
            )
    names = [entry["imageName"] for entry in entries]
    touch(root / "image_train", *names)
    touch(root / "image_query", "000001.jpg", "000002.jpg")
    touch(root / "image_test", "000001.jpg", "000002.jpg", "000003.jpg")
    items(root / "train_label.xml", *entries)
    write(
        root / "train_track.txt", *(f"{names[i]} {names[i + 1]} " for i in range(0, len(names), 2))
    )
    write(root / "test_track.txt", "000003.jpg ", "000001.jpg 000002.jpg ")
    return root


def read_city(root: Path, **options: Any) -> Reading:
    return cityflow.read_cityflow(CityFlowSource(root=str(root), **options))


def test_cityflow_takes_labels_from_xml_and_leaves_test_images_nameless(tmp_path: Path) -> None:
    found = read_city(city_flow(tmp_path))
    assert counts(found.rows) == {"train": 24, "query": 2, "gallery": 3}
    rows = by_name(found)
    row = rows["image_train/000003.jpg"]
    assert (row["identity"], row["camera"], row["track"]) == ("cityflow:0007", "11", "train2")
    test = [row for row in found.rows if row["split"] != "train"]
    assert {(row["identity"], row["camera"]) for row in test} == {(None, None)}
    (warning,) = found.warnings
    assert warning.startswith("the 2 queries of")
    assert "cannot be evaluated here; set hold_out" in warning


def test_tracks_of_cityflow_are_not_lent_to_queries_of_the_same_number(tmp_path: Path) -> None:
    rows = by_name(read_city(city_flow(tmp_path)))
    assert rows["image_test/000001.jpg"]["track"] == "gallery2"
    assert rows["image_test/000003.jpg"]["track"] == "gallery1"
    assert rows["image_query/000001.jpg"]["track"] is None
    assert rows["image_train/000001.jpg"]["track"] == "train1"
    ids = [row["observation_id"] for row in rows.values()]
    assert len(set(ids)) == 29


def test_cameras_of_test_images_are_known_where_the_later_edition_gives_them(
    tmp_path: Path,
) -> None:
    root = city_flow(tmp_path)
    source = CityFlowSource(root=str(root))
    assert cityflow.LAYOUT.official(source) == {"train": (36935, 333)}
    items(root / "query_label.xml", {"imageName": "000001.jpg", "cameraID": "c041"})
    items(root / "test_label.xml", {"imageName": "000002.jpg", "cameraID": "c006"})
    found = read_city(root)
    cameras = {place: row["camera"] for place, row in by_name(found).items()}
    assert cameras["image_query/000001.jpg"] == "41"
    assert cameras["image_query/000002.jpg"] is None
    assert cameras["image_test/000002.jpg"] == "6"
    assert {row["identity"] for row in found.rows if row["split"] != "train"} == {None}
    assert cityflow.LAYOUT.official(source) == {}


def test_held_out_vehicles_of_cityflow_replace_the_test_images(tmp_path: Path) -> None:
    root = city_flow(tmp_path, vehicles=20)
    found = read_city(root, hold_out=0.3, seed=1)
    assert found.warnings == []
    assert len(found.rows) == 80
    sides: dict[str, set[str]] = {}
    for row in found.rows:
        sides.setdefault(row["split"], set()).add(row["identity"])
    assert not sides["train"] & (sides["query"] | sides["gallery"])
    assert sides["query"] == sides["gallery"]
    assert 2 <= len(sides["query"]) <= 10
    queries = [(row["identity"], row["camera"]) for row in found.rows if row["split"] == "query"]
    assert len(queries) == len(set(queries)) == 2 * len(sides["query"])
    assert read_city(root, hold_out=0.3, seed=1).rows == found.rows
    held = {seed: _tested(read_city(root, hold_out=0.3, seed=seed)) for seed in range(4)}
    assert len({frozenset(identities) for identities in held.values()}) > 1
    for name in ("image_query", "image_test"):
        for file in (root / name).iterdir():
            file.unlink()
        (root / name).rmdir()
    assert read_city(root, hold_out=0.3, seed=1).rows == found.rows
    with pytest.raises(ValueError, match=r"lacks \['image_query', 'image_test'\]"):
        read_city(root)


def test_the_validation_of_vehiclenet_is_a_number_of_vehicles_among_all(tmp_path: Path) -> None:
    root = city_flow(tmp_path, vehicles=20)
    plain = read_city(root, hold_out=5)
    assert len(_tested(plain)) == 5
    assert counts(plain.rows) == {"train": 60, "query": 10, "gallery": 10}
    found = read_city(root, hold_out=5, gallery="all")
    assert _tested(found) == _tested(plain)
    # Every image answers: the gallery's, those trained on as distractors, and the queries.
    assert counts(found.rows) == {"train": 60, "query": 10, "gallery": 80}
    assert found.rows[: len(plain.rows)] == plain.rows
    more = found.rows[len(plain.rows) :]
    assert Counter((row.get("role"), row["identity"]) for row in more)["distractor", None] == 60
    assert {row["identity"] for row in more if row["identity"]} == _tested(plain)
    assert len({row["observation_id"] for row in found.rows}) == len(found.rows)
    for options, rule in (
        ({"hold_out": 19}, r"hold_out 19 leaves 1 of 20 vehicles .* at most 18"),
        (
            {"hold_out": 2.5},
            r"hold_out 2\.5 must be a share below 1 or a number of vehicles from 2",
        ),
        ({"gallery": "all"}, r"gallery 'all' needs hold_out above 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            read_city(root, **options)


def _tested(found: Reading) -> set[str]:
    return {row["identity"] for row in found.rows if row["split"] == "query"}


def test_train_images_of_cityflow_without_a_vehicle_are_left_out(tmp_path: Path) -> None:
    root = city_flow(tmp_path)
    touch(root / "image_train", "000900.jpg")
    entries = [
        {"imageName": "000001.jpg", "vehicleID": "0007", "cameraID": "c010"},
        {"imageName": "000005.jpg", "vehicleID": "0008"},
        {"imageName": "000006.jpg", "cameraID": "c010"},
        {"imageName": "000800.jpg", "vehicleID": "0009", "cameraID": "c010"},
    ]
    items(root / "train_label.xml", *entries)
    found = read_city(root)
    train = {place: row for place, row in by_name(found).items() if row["split"] == "train"}
    assert set(train) == {"image_train/000001.jpg", "image_train/000005.jpg"}
    assert train["image_train/000005.jpg"]["camera"] is None
    plain, idle, _ = found.warnings
    assert plain.startswith("23 images of image_train of")
    assert "have no vehicle in train_label.xml, e.g. '000002.jpg'; they are left out" in plain
    assert idle.startswith("1 of 4 names in train_label.xml are no image of image_train")
    items(root / "train_label.xml", entries[0])
    with pytest.raises(ValueError, match="has 1 train identities"):
        read_city(root)
    (root / "train_label.xml").unlink()
    with pytest.raises(ValueError, match=r"no CityFlow layout in .* lacks \['train_label\.xml'\]"):
        read_city(root)


# CompCars


def comp_cars(root: Path) -> Path:
    """One model in two years and another of an unknown year, two photographs each."""
    places = [f"{c}/{k}" for c in ("78/1/2014", "78/1/2012", "81/12/unknown") for k in ("a", "b")]
    touch(root / "data/image", *(f"{place}.jpg" for place in places))
    for view, place in enumerate(places):
        write(root / f"data/label/{place}.txt", str(view or -1), "1", "3 2 10 6")
    touch(root / "sv_data/image", "1/x.jpg", "1/y.jpg", "2/z.jpg")
    return root


def read_comp(root: Path, **options: Any) -> Reading:
    return compcars.read_compcars(CompCarsSource(root=str(root), **options))


def test_a_class_of_compcars_is_a_model_of_one_year(tmp_path: Path) -> None:
    found = read_comp(comp_cars(tmp_path))
    assert found.warnings == []
    classes = Counter(row["identity"] for row in found.rows)
    assert classes == {
        "compcars:78_1_2014": 2,
        "compcars:78_1_2012": 2,
        "compcars:81_12_unknown": 2,
    }
    assert {(row["split"], row["camera"]) for row in found.rows} == {("train", None)}
    rows = {row["identity"] + row["locator"][-5]: row for row in found.rows}
    assert rows["compcars:78_1_2014a"]["view"] is None
    assert rows["compcars:78_1_2014b"]["view"] == "front"
    assert rows["compcars:81_12_unknownb"]["view"] == "rear-side"
    year = {"brand_id": "78", "model_id": "1", "year": "2012"}
    assert rows["compcars:78_1_2012a"]["attributes"] == year
    assert rows["compcars:81_12_unknowna"]["attributes"] == {"brand_id": "81", "model_id": "12"}


def test_cars_are_cut_out_by_boxes_that_count_from_one(tmp_path: Path) -> None:
    root = comp_cars(tmp_path)
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[1:6, 2:10] = 200
    (root / "data/image/78/1/2014/a.jpg").write_bytes(images.encode_png(pixels))
    row = next(row for row in read_comp(root).rows if row["locator"].endswith("2014/a.jpg"))
    cut = images.decode(load(row["locator"])["image"])
    assert cut.shape == (5, 8, 3)
    assert (cut == 200).all()
    whole = next(r for r in read_comp(root, crop=False).rows if r["locator"].endswith("2014/a.jpg"))
    assert images.decode(load(whole["locator"])["image"]).shape == (8, 12, 3)
    assert whole["observation_id"] == row["observation_id"]


def test_photographs_without_a_valid_box_are_left_out_of_the_cut_ones(tmp_path: Path) -> None:
    root = comp_cars(tmp_path)
    place = root / "data/label"
    write(place / "78/1/2014/a.txt", "1", "1", "10 2 3 6")
    write(place / "78/1/2014/b.txt", "1", "1", "0 2 3 6 ")
    write(place / "78/1/2012/a.txt", "1")
    (place / "78/1/2012/b.txt").unlink()
    touch(root / "data/image", "78/stray.jpg")
    with pytest.raises(ValueError, match="has 1 train identities"):
        read_comp(root)
    write(place / "78/1/2014/a.txt", "1", "1", "1 1 3 6")
    found = read_comp(root)
    assert len(found.rows) == 3
    strange, boxless = found.warnings
    assert "1 images of" in strange
    assert "are in no folder of a make, model and year, e.g. 'stray.jpg'" in strange
    assert boxless.startswith("3 images of")
    assert "have no valid box in data/label" in boxless
    assert len(read_comp(root, crop=False).rows) == 6


def test_cars_under_street_cameras_are_classes_of_their_own(tmp_path: Path) -> None:
    root = comp_cars(tmp_path)
    found = read_comp(root, surveillance=True)
    street = Counter(r["identity"] for r in found.rows if r["identity"].startswith("compcars:sv_"))
    assert street == {"compcars:sv_1": 2, "compcars:sv_2": 1}
    assert len(found.rows) == 9
    official = compcars.LAYOUT.official
    assert official(CompCarsSource(root="x")) == {"train": (136713, 4701)}
    assert official(CompCarsSource(root="x", surveillance=True)) == {}


# All of them

TREES: dict[str, tuple[Callable[[Path], Path], type[Any]]] = {
    "veri776": (veri, VeRi776Source),
    "vehicleid": (vehicle_id, VehicleIDSource),
    "veriwild": (veri_wild, VERIWildSource),
    "cityflow": (city_flow, CityFlowSource),
    "compcars": (comp_cars, CompCarsSource),
}


@pytest.mark.parametrize("reader", list(TREES))
def test_each_layout_recognises_its_own_tree_and_no_other(reader: str, tmp_path: Path) -> None:
    build, kind = TREES[reader]
    root = build(tmp_path / "sets" / "inner").parent
    claims = {name: layout.recognise(root) for name, layout in READERS.items()}
    assert {name for name, source in claims.items() if source is not None} == {reader}
    assert claims[reader] == kind(root=str(root))
    assert READERS[reader].terms
    assert claims[reader].licence


@pytest.mark.parametrize("reader", list(TREES))
def test_a_folder_without_the_layout_is_one_sentence(reader: str, tmp_path: Path) -> None:
    source = TREES[reader][1](root=str(tmp_path))
    with pytest.raises(ValueError, match=r"no .* layout in .* lacks \["):
        sources.read(source)


@pytest.mark.parametrize("reader", list(TREES))
def test_a_reading_depends_on_every_file_it_opens(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, kind = TREES[reader]
    source = kind(root=str(build(tmp_path)))
    opened: set[Path] = set()
    read_bytes = Path.read_bytes

    def noted(file: Path) -> bytes:
        opened.add(file)
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", noted)
    found = sources.read(source)
    named = set(sources.files(source))
    assert opened
    assert opened <= named
    assert {Path(row["locator"].rpartition(":")[2]) for row in found.rows} <= named


def test_vehiclenet_is_the_union_of_its_sources(tmp_path: Path) -> None:
    trees = {
        name: build(tmp_path / name) for name, (build, _) in TREES.items() if name != "veriwild"
    }
    sources: list[ReaderSource] = [TREES[name][1](root=str(root)) for name, root in trees.items()]
    table = planning.plan(sources)
    rows = table.select(["source", "identity", "split"]).to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    assert Counter(row["source"] for row in train) == {
        "veri776": 4,
        "vehicleid": 3,
        "cityflow": 24,
        "compcars": 6,
    }
    classes = {name: {r["identity"] for r in train if r["source"] == name} for name in trees}
    assert {name: len(one) for name, one in classes.items()} == {
        "veri776": 2,
        "vehicleid": 2,
        "cityflow": 6,
        "compcars": 3,
    }
    assert len(set().union(*classes.values())) == 13
    assert pc.count_distinct(table["observation_id"]).as_py() == len(rows) == 4 + 10 + 11 + 29 + 6


def test_veri_is_told_from_sets_in_the_same_folders(tmp_path: Path) -> None:
    touch(tmp_path / "a", *(f"{f}/0001_c1s1_000451_03.jpg" for f in veri776.FOLDERS.values()))
    assert veri776.recognise(tmp_path / "a") is None
    market = touch(tmp_path / "b", "query/0001_c1s1_000451_03.jpg", "bounding_box_train/x.jpg")
    touch(market, "bounding_box_test/x.jpg")
    claims = {name: layout.recognise(market) for name, layout in READERS.items()}
    assert [s for s in claims.values() if s is not None] == [Market1501Source(root=str(market))]
    synthetic = touch(tmp_path / "c", "sys_image_train/00001_c006_1.jpg")
    items(synthetic / "train_label.xml", {"imageName": "00001_c006_1.jpg", "orientation": "1.5"})
    claims = {name: layout.recognise(synthetic) for name, layout in READERS.items()}
    assert [s for s in claims.values() if s is not None] == [VehicleXSource(root=str(synthetic))]
