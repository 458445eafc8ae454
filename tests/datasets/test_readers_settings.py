"""The readers of GRID, i-LIDS, CUHK02 and CUHK-SYSU, and sets that are targets only."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from ray_reid import images
from ray_reid.datasets import doctor, loading, planning, sources
from ray_reid.datasets.readers import READERS
from ray_reid.datasets.readers.cuhk02 import CUHK02Source
from ray_reid.datasets.readers.cuhk_sysu import CUHKSYSUSource
from ray_reid.datasets.readers.grid import GRIDSource
from ray_reid.datasets.readers.ilids import ILIDSSource
from ray_reid.datasets.readers.prid2011 import PRID2011Source
from ray_reid.datasets.readers.viper import VIPeRSource
from ray_reid.datasets.reading import ReaderSource, Reading, Row

PARTITIONS = "features_and_partitions.mat"


def touch(root: Path, *names: str) -> Path:
    """Empty files; a reader looks at names only."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def by_name(found: Reading) -> dict[str, Row]:
    return {Path(row["locator"]).name: row for row in found.rows}


def splits(found: Reading) -> Counter[str]:
    return Counter(row["split"] for row in found.rows)


def people(found: Reading, split: str) -> set[str]:
    return {row["identity"] for row in found.rows if row["split"] == split and row["identity"]}


def refuses(match: str, source: ReaderSource) -> None:
    with pytest.raises(ValueError, match=match):
        sources.read(source)


# GRID


def record(train: list[int]) -> NDArray[Any]:
    """A partition as MATLAB writes it: a record in a cell, whose third field is the people."""
    fields = [("kind", object), ("seed", object), ("people", object)]
    inner = np.empty((1, 1), dtype=fields)
    inner[0, 0] = ("train", 0, np.array([train], dtype=np.uint16))
    return inner


def grid(root: Path) -> Path:
    """Six people of whom half are trained on in each of two partitions, and two distractors."""
    for person in range(1, 7):
        touch(root, f"underground_reid/probe/{person:04d}_1_25004_107_32_106_221.jpeg")
        touch(root, f"underground_reid/gallery/{person:04d}_{2 + person % 3}_25023_1_2_3_4.jpeg")
    for number in (1, 2):
        touch(root, f"underground_reid/gallery/0000_5_2500{number}_1_2_3_4.jpeg")
    cells = np.empty((1, 2), dtype=object)
    cells[0, 0], cells[0, 1] = record([1, 2, 3]), record([2, 4, 6])
    savemat(root / PARTITIONS, {"trainIdxAll": cells})
    return root


@pytest.mark.parametrize("nested", ["", "grid", "data/grid"])
def test_grid_is_divided_by_its_published_partitions(tmp_path: Path, nested: str) -> None:
    grid(tmp_path / nested)
    found = sources.read(GRIDSource(root=str(tmp_path)))
    assert splits(found) == {"train": 6, "query": 3, "gallery": 5}
    assert people(found, "train") == {f"grid:000{n}" for n in (1, 2, 3)}
    other = sources.read(GRIDSource(root=str(tmp_path), split=1))
    assert people(other, "train") == {f"grid:000{n}" for n in (2, 4, 6)}
    row = by_name(found)["0004_1_25004_107_32_106_221.jpeg"]
    assert (row["identity"], row["camera"], row["split"]) == ("grid:0004", "1", "query")
    assert found.warnings == []


def test_number_0_of_grid_is_a_distractor_of_the_gallery(tmp_path: Path) -> None:
    rows = sources.read(GRIDSource(root=str(grid(tmp_path)))).rows
    nobody = [row for row in rows if row["role"] == "distractor"]
    assert {(row["identity"], row["split"]) for row in nobody} == {(None, "gallery")}
    assert len(nobody) == 2


def test_grid_says_what_is_wrong_with_its_partitions(tmp_path: Path) -> None:
    source = GRIDSource(root=str(grid(tmp_path)), split=7)
    refuses("split 7 is not in .*it has 0 to 1", source)
    savemat(tmp_path / PARTITIONS, {"features": np.zeros(3)})
    refuses("is no readable .mat file with trainIdxAll", source)
    (tmp_path / PARTITIONS).write_bytes(b"x")
    refuses("is no readable .mat file with trainIdxAll", source)
    (tmp_path / PARTITIONS).unlink()
    refuses(rf"no GRID layout in .* lacks \['{PARTITIONS}'\]", source)


# i-LIDS


def ilids(root: Path) -> Path:
    """Six people of two to four images, and one of a single image."""
    for person in range(1, 7):
        for number in range(1, 3 + person % 3):
            touch(root, f"i-LIDS_Pedestrian/Persons/{person:04d}{number:03d}.jpg")
    return touch(root, "i-LIDS_Pedestrian/Persons/0009001.jpg")


def test_ilids_searches_one_image_of_a_person_with_another(tmp_path: Path) -> None:
    found = sources.read(ILIDSSource(root=str(ilids(tmp_path))))
    assert len(people(found, "train")) == 3
    normal = [row for row in found.rows if row["role"] == "normal"]
    asked, answering = (
        [row["identity"] for row in normal if row["split"] == split]
        for split in ("query", "gallery")
    )
    assert sorted(asked) == sorted(answering)
    assert len(set(asked)) == 3
    assert {row["camera"] for row in found.rows} == {None}
    others = [row for row in found.rows if row["role"] == "junk"]
    assert {(row["identity"], row["split"]) for row in others} <= {(None, "gallery")}
    (alone,) = found.warnings
    assert "are the only ones of their people, e.g. '0009001.jpg'" in alone


def test_the_draw_of_ilids_depends_on_its_seed_alone(tmp_path: Path) -> None:
    root = str(ilids(tmp_path))
    draws = [sources.read(ILIDSSource(root=root, split_seed=seed)) for seed in range(6)]
    assert sources.read(ILIDSSource(root=root, split_seed=3)).rows == draws[3].rows
    assert len({frozenset(people(draw, "train")) for draw in draws}) > 1
    (tmp_path / "x").mkdir()
    refuses(r"no i-LIDS layout", ILIDSSource(root=str(tmp_path / "x")))
    few = touch(tmp_path / "y", "Persons/0001001.jpg", "Persons/0001002.jpg")
    refuses("has 1 people with two images or more; it takes at least 4", ILIDSSource(root=str(few)))


# CUHK02


def cuhk02(root: Path) -> Path:
    """Two people in every pair, with the same numbers."""
    for pair in range(1, 6):
        for view in (1, 2):
            for person in ("001", "002"):
                names = (f"Dataset/P{pair}/cam{view}/{person}_{n}.png" for n in (1, 2))
                touch(root, *names)
    return root


def test_people_of_cuhk02_are_others_in_every_pair(tmp_path: Path) -> None:
    found = sources.read(CUHK02Source(root=str(cuhk02(tmp_path))))
    assert splits(found) == {"train": 32, "query": 4, "gallery": 4}
    assert people(found, "train") == {f"cuhk02:{p}_00{n}" for p in range(1, 5) for n in (1, 2)}
    assert people(found, "query") == people(found, "gallery") == {"cuhk02:5_001", "cuhk02:5_002"}
    assert len({row["camera"] for row in found.rows}) == 10
    assert {row["camera"] for row in found.rows if row["split"] == "query"} == {"5_1"}
    other = sources.read(CUHK02Source(root=str(tmp_path), test_pair=2))
    assert people(other, "query") == {"cuhk02:2_001", "cuhk02:2_002"}


def test_cuhk02_counts_names_that_do_not_fit_and_says_what_it_lacks(tmp_path: Path) -> None:
    touch(cuhk02(tmp_path), "Dataset/P1/cam1/face_1.png")
    (strange,) = sources.read(CUHK02Source(root=str(tmp_path))).warnings
    assert "no name like 001_1.png, e.g. 'face_1.png'" in strange
    for file in (tmp_path / "Dataset/P5/cam2").iterdir():
        file.unlink()
    (tmp_path / "Dataset/P5/cam2").rmdir()
    refuses(r"lacks \['P5/cam2'\]", CUHK02Source(root=str(tmp_path)))


# CUHK-SYSU


def cuhk_sysu(root: Path) -> Path:
    """Two people in three frames, one box over the edge of its frame and one outside it."""
    frames = root / "Image" / "SSM"
    frames.mkdir(parents=True)
    for number in (1, 2, 3):
        Image.new("RGB", (40, 30), (40 * number, 90, 120)).save(frames / f"s{number}.jpg")

    def scenes(*found: tuple[str, list[int]]) -> NDArray[Any]:
        kind = [("imname", object), ("idlocate", object), ("ishard", object)]
        made = np.empty((1, len(found)), dtype=kind)
        for place, (frame, box) in enumerate(found):
            made[0, place] = (frame, np.array([box], dtype=np.int32), 0)
        return made

    fields = [("idname", object), ("nAppear", object), ("scene", object)]
    record = np.empty((1, 2), dtype=fields)
    first = scenes(("s1.jpg", [2, 3, 10, 20]), ("s2.jpg", [32, 5, 20, 20]))
    outside = ("s3.jpg", [90, 0, 5, 5])
    second = scenes(("s1.jpg", [20, 3, 10, 20]), ("s9.jpg", [0, 0, 5, 5]), outside)
    record[0, 0], record[0, 1] = ("p1", 2, first), ("p22", 3, second)
    (root / "annotation").mkdir()
    savemat(root / "annotation" / "Person.mat", {"Person": record})
    return root


def test_cuhk_sysu_is_cut_from_its_frames(tmp_path: Path) -> None:
    found = sources.read(CUHKSYSUSource(root=str(cuhk_sysu(tmp_path))))
    assert splits(found) == {"train": 3}
    assert Counter(row["identity"] for row in found.rows) == {"cuhk_sysu:1": 2, "cuhk_sysu:22": 1}
    sizes = []
    for row in found.rows:
        loaded = loading.load(row["locator"])
        assert "drop_reason" not in loaded
        sizes.append(images.decode(loaded["image"]).shape[:2])
    # The second box is cut to the frame of 40 pixels.
    assert sizes == [(20, 10), (20, 8), (20, 10)]
    assert len({row["observation_id"] for row in found.rows}) == 3
    absent, outside = found.warnings
    assert "named in Person.mat but not on the disk, e.g. 's9.jpg'" in absent
    assert "a box of Person.mat outside the frame, e.g. 's3.jpg'" in outside


def test_crops_of_cuhk_sysu_that_are_there_are_read_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "cropped_images/p1_s1_1.jpg", "cropped_images/p1_s2_1.jpg")
    touch(tmp_path, "cropped_images/p22_s1_2.jpg", "cropped_images/x.jpg")
    found = sources.read(CUHKSYSUSource(root=str(tmp_path)))
    assert people(found, "train") == {"cuhk_sysu:1", "cuhk_sysu:22"}
    (strange,) = found.warnings
    assert "no name like p11422_s16929_1.jpg, e.g. 'x.jpg'" in strange


def test_another_file_in_place_of_person_mat_is_one_sentence(tmp_path: Path) -> None:
    cuhk_sysu(tmp_path)
    savemat(tmp_path / "annotation" / "Person.mat", {"Person": np.zeros(3)})
    refuses("is no readable Person.mat with idname", CUHKSYSUSource(root=str(tmp_path)))


# All of them

TREES: dict[str, Callable[[Path], Path]] = {
    "grid": grid,
    "ilids": ilids,
    "cuhk02": cuhk02,
    "cuhk_sysu": cuhk_sysu,
}


@pytest.mark.parametrize("reader", TREES)
def test_each_set_is_recognised_by_its_own_layout_only(tmp_path: Path, reader: str) -> None:
    TREES[reader](tmp_path / "inside")
    (found,) = sources.recognise(tmp_path)
    assert found.reader == reader
    assert planning.plan([found]).num_rows > 2
    # Fingerprints name files relative to the root.
    assert all(file.relative_to(tmp_path) for file in sources.files(found))
    page = doctor.page(tmp_path, doctor.examine(found, look=False))
    assert f"reader {reader}" in page
    assert "research use only" in page
    assert READERS[reader].recognise(tmp_path / "none") is None


def test_a_set_that_is_a_target_only_is_tested_on_whole(tmp_path: Path) -> None:
    for person in range(8):
        touch(tmp_path / "viper", f"cam_a/{person:03d}_45.bmp", f"cam_b/{person:03d}_90.bmp")
        touch(tmp_path / "prid", *(f"cam_{c}/person_{person + 1:04d}.png" for c in "ab"))
    touch(tmp_path / "prid", "cam_b/person_0300.png")
    made: dict[str, ReaderSource] = {
        "viper": VIPeRSource(root=str(tmp_path / "viper"), tested="all"),
        "prid2011": PRID2011Source(root=str(tmp_path / "prid"), tested="all"),
        "grid": GRIDSource(root=str(grid(tmp_path / "grid")), tested="all"),
        "ilids": ILIDSSource(root=str(ilids(tmp_path / "ilids")), tested="all"),
    }
    for source in made.values():
        found = sources.read(source)
        assert "train" not in splits(found)
        assert people(found, "query") == people(found, "gallery")
        assert {row.get("role", "normal") for row in found.rows} <= {"normal", "distractor"}
