import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from ray_reid import images, schema
from ray_reid.datasets import drawings, loading, planning, reading, splits
from ray_reid.datasets.readers import READERS, folder, market1501, miniature
from ray_reid.datasets.readers.folder import FolderSource
from ray_reid.datasets.readers.market1501 import Market1501Source
from ray_reid.datasets.readers.miniature import MiniatureSource
from ray_reid.miniature import draw_shot, plan_street


def touch(root: Path, *names: str) -> Path:
    """Empty files; a reader looks at names only."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def two_cameras(root: Path, identities: int) -> Path:
    return touch(root, *(f"v{i:02d}_cam{c}.jpg" for i in range(identities) for c in (1, 2)))


def read(root: Path, **options: Any) -> reading.Reading:
    return folder.read_folder(FolderSource(root=str(root), name="own", **options))


def by_name(found: reading.Reading) -> dict[str, str]:
    """Split of every image by its base name."""
    return {Path(row["locator"]).name: row["split"] for row in found.rows}


def refuses(match: str, root: Path, **options: Any) -> None:
    with pytest.raises(ValueError, match=match):
        read(root, **options)


# Listing


def test_listing_ignores_what_is_no_image_and_any_case_of_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "sub/c.Jpeg", "Thumbs.db", ".DS_Store", "._a.png", "n.txt")
    found = [file.relative_to(tmp_path).as_posix() for file in reading.list_images(tmp_path)]
    assert found == ["a.png", "b.JPG", "sub/c.Jpeg"]


def test_listing_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.jpg")
    root = touch(tmp_path / "root", "sub/b.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "sub" / "up").symlink_to(root)
    found = [file.relative_to(root).as_posix() for file in reading.list_images(root)]
    assert found == ["linked/a.jpg", "sub/b.jpg"]


def test_listing_refuses_a_name_that_no_table_can_hold(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff_cam1.jpg")).touch()
    with pytest.raises(ValueError, match="is not UTF-8; rename"):
        reading.list_images(tmp_path)


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    refuses("'.*none' does not exist; give the folder", tmp_path / "none")
    touch(tmp_path, "file.jpg")
    refuses("is a file, not a folder", tmp_path / "file.jpg")


def test_share_is_uniform_and_depends_on_its_parts_only() -> None:
    shares = [reading.share(0, f"identity {i}") for i in range(2000)]
    assert all(0 <= share < 1 for share in shares)
    assert 0.47 < sum(shares) / len(shares) < 0.53
    assert reading.share(0, "a") == reading.share(0, "a") != reading.share(1, "a")


def test_unanswerable_matches_a_loop() -> None:
    cameras: list[str | None] = ["1", "2", None]
    rows = [
        {"identity": identity, "camera": camera, "split": split}
        for number, identity in enumerate(["a", "b", "c"])
        for place, camera in enumerate(cameras)
        for split in ("query", "gallery")
        if (number + place + len(split)) % 3
    ]
    slow = [
        q
        for q in rows
        if q["split"] == "query"
        and not any(
            g["split"] == "gallery"
            and g["identity"] == q["identity"]
            and (q["camera"] is None or g["camera"] != q["camera"])
            for g in rows
        )
    ]
    assert reading.unanswerable(rows) == slow


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = str(touch(tmp_path, "a.jpg", "closed/b.jpg") / "closed")
    scan = os.scandir

    # Permissions would not stop a test that runs as root.
    def scandir(path: Any) -> Any:
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match="closed' cannot be listed: Permission denied; make it"):
        reading.list_images(tmp_path)


# Folder: names


def test_a_folder_is_read_from_its_names_alone(tmp_path: Path) -> None:
    root = touch(tmp_path / "x9_cam7", *(f"deep/er/a{i}_cam{c}.jpg" for i in "1234" for c in "12"))
    rows = read(root, licence="CC0").rows
    assert {row["identity"] for row in rows} == {f"own:a{i}" for i in range(1, 5)}
    assert {row["camera"] for row in rows} == {"1", "2"}
    assert {row["licence"] for row in rows} == {"CC0"}
    place = "deep/er/a1_cam1.jpg"
    assert rows[0]["observation_id"] == schema.observation_id("own", place)
    assert rows[0]["locator"] == str(root / place)


def test_the_name_of_a_source_defaults_to_its_folder(tmp_path: Path) -> None:
    root = two_cameras(tmp_path / "cars", 4)
    found = folder.read_folder(FolderSource(root=str(root)))
    assert found.rows[0]["identity"] == "cars:v00"


def test_optional_groups_fill_their_columns(tmp_path: Path) -> None:
    pattern = r"(?P<identity>\d+)_(?P<clothes>\w)_(?P<view>front|rear)_(?P<time>[\d.]+)"
    names = [f"{i}_{k}_front_{k}.5" for i in range(4) for k in (1, 2)]
    root = touch(tmp_path, *(f"{name}.jpg" for name in names))
    row = read(root, pattern=pattern).rows[0]
    assert (row["camera"], row["clothes"], row["view"], row["time"]) == (None, "1", "front", 1.5)
    words = pattern.replace(r"[\d.]+", r"\w+")
    refuses("finds 'x' in .*not a number", touch(tmp_path, "9_1_front_x.jpg"), pattern=words)


def test_names_that_do_not_match_are_counted(tmp_path: Path) -> None:
    root = touch(two_cameras(tmp_path, 4), "IMG_1.jpg", "IMG_2.jpg")
    (warning,) = read(root).warnings
    assert warning.startswith("2 of 10 image names of ")
    assert "e.g. 'IMG_1.jpg'" in warning


def test_a_pattern_that_matches_nothing_is_refused_with_an_example(tmp_path: Path) -> None:
    root = touch(tmp_path, "b.jpg", "a.jpg")
    refuses(r"pattern .* matches none of the 2 image names of .*, e.g. 'a.jpg'", root)


def test_a_group_that_stops_inside_a_number_is_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"v{i}_cam{c}.jpg" for i in range(4) for c in (1, 2, 15)))
    one = r"(?P<identity>.+)_cam(?P<camera>\d)"
    message = r"group `camera` .* finds '1' in 'v0_cam15.jpg', .* '5'; write \\d\+"
    refuses(message, root, pattern=one)
    whole = one.replace(r"\d", r"\d+")
    assert {row["camera"] for row in read(root, pattern=whole).rows} == {"1", "2", "15"}
    names = touch(tmp_path / "cut", *(f"car1{i}_cam{c}.jpg" for i in range(4) for c in "12"))
    refuses("group `identity` .* finds 'car1'", names, pattern=r"(?P<identity>[a-z]+\d)")


def test_fields_of_a_fixed_width_may_touch(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"00{i}{c}{k}.jpg" for i in range(10, 14) for c in "12" for k in "34"))
    rows = read(root, pattern=r"(?P<identity>\d{4})(?P<camera>\d{1})\d").rows
    assert {row["identity"] for row in rows} == {f"own:00{i}" for i in range(10, 14)}
    assert {row["camera"] for row in rows} == {"1", "2"}


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    refuses("holds no image", touch(tmp_path, "a.txt"))


# Folder: splits


def test_lists_split_by_base_name_or_relative_path(tmp_path: Path) -> None:
    root = two_cameras(tmp_path / "in", 4)
    (tmp_path / "train.txt").write_text("# ids 0 and 1\nv00_cam1.jpg\n\nv00_cam2.jpg\nv01_cam1.jpg")
    (tmp_path / "test.txt").write_text("in/v02_cam1.jpg\r\nin/v02_cam2.jpg\r\n")
    found = read(tmp_path, train_list="train.txt", test_list="test.txt")
    assert by_name(found) == {
        "v00_cam1.jpg": "train",
        "v00_cam2.jpg": "train",
        "v01_cam1.jpg": "train",
        "v02_cam1.jpg": "query",
        "v02_cam2.jpg": "gallery",
    }
    (warning,) = found.warnings
    assert "3 of 8 images are in neither train.txt nor test.txt" in warning
    assert len(list(root.iterdir())) == 8


def test_with_one_list_all_other_images_are_the_other_split(tmp_path: Path) -> None:
    two_cameras(tmp_path, 4)
    train = [f"v0{i}_cam{c}.jpg" for i in (0, 1) for c in (1, 2)]
    (tmp_path / "train.txt").write_text("\n".join(train))
    counts = Counter(by_name(read(tmp_path, train_list="train.txt")).values())
    assert counts == {"train": 4, "query": 2, "gallery": 2}
    counts = Counter(by_name(read(tmp_path, test_list="train.txt")).values())
    assert counts == {"train": 4, "query": 2, "gallery": 2}


def test_a_bad_list_is_one_sentence(tmp_path: Path) -> None:
    touch(two_cameras(tmp_path, 4), "sub/v00_cam1.jpg")
    (tmp_path / "bad.txt").write_text("v01_cam1.jpg\nv09_cam1.jpg\nv08_cam1.jpg\n")
    refuses(
        "2 of 3 names in bad.txt .* the first is 'v09_cam1.jpg'", tmp_path, train_list="bad.txt"
    )
    refuses("cannot read the list '.*no.txt': No such file", tmp_path, train_list="no.txt")
    (tmp_path / "two.txt").write_text("v01_cam1.jpg\nv01_cam2.jpg\n")
    options = {"train_list": "two.txt", "test_list": "two.txt"}
    refuses("2 images are in both two.txt and two.txt, e.g. 'v01_cam1.jpg'", tmp_path, **options)
    (tmp_path / "half.txt").write_text("v01_cam1.jpg\n")
    refuses(
        "1 identities .* are in both train and test, e.g. 'v01'", tmp_path, train_list="half.txt"
    )


def test_a_base_name_that_two_images_share_must_be_written_in_full(tmp_path: Path) -> None:
    touch(tmp_path, "a/v00_cam1.jpg", "b/v00_cam1.jpg", "b/v01_cam1.jpg")
    (tmp_path / "train.txt").write_text("v00_cam1.jpg\n")
    refuses("'v00_cam1.jpg' in train.txt names 2 images", tmp_path, train_list="train.txt")


def test_sub_folders_are_splits_only_if_query_and_gallery_exist(tmp_path: Path) -> None:
    touch(tmp_path, "train/a_cam1.jpg", "train/b_cam1.jpg", "query/c_cam1.jpg", "else/c_cam2.jpg")
    touch(tmp_path, "gallery/c_cam2.jpg", "gallery/d_cam2.jpg")
    found = read(tmp_path)
    assert Counter(row["split"] for row in found.rows) == {"train": 2, "query": 1, "gallery": 2}
    assert "1 of 6 images are outside the sub-folders" in found.warnings[0]
    refuses("query_cameras .* has no effect", tmp_path, query_cameras=("1",))
    other = touch(tmp_path / "other", *(f"train/{i}_cam{c}.jpg" for i in range(8) for c in "12"))
    assert set(by_name(read(other)).values()) == {"train", "query", "gallery"}


@pytest.mark.parametrize("word", ["test", "val"])
def test_train_and_test_sub_folders_are_splits_whose_queries_are_chosen(
    tmp_path: Path, word: str
) -> None:
    touch(tmp_path, *(f"train/{i}_cam{c}.jpg" for i in "ab" for c in "12"))
    touch(tmp_path, *(f"{word}/deep/{i}_cam{c}.jpg" for i in "cd" for c in "12"))
    found = read(tmp_path)
    assert found.warnings == []
    splits_of = by_name(found)
    assert {name for name, split in splits_of.items() if split == "train"} == {
        f"{i}_cam{c}.jpg" for i in "ab" for c in "12"
    }
    queries = {name for name, split in splits_of.items() if split == "query"}
    assert queries == {"c_cam1.jpg", "d_cam1.jpg"}
    queries = {n for n, s in by_name(read(tmp_path, query_cameras=("2",))).items() if s == "query"}
    assert queries == {"c_cam2.jpg", "d_cam2.jpg"}
    touch(tmp_path, f"{word}/a_cam3.jpg")
    refuses("1 identities .* in both train and test, e.g. 'a'", tmp_path)


def test_a_test_sub_folder_comes_before_val(tmp_path: Path) -> None:
    folders = {"train": "ab", "test": "cd", "val": "ef"}
    for name, identities in folders.items():
        touch(tmp_path / name, *(f"{i}_cam{c}.jpg" for i in identities for c in "12"))
    found = read(tmp_path)
    assert {name[0] for name in by_name(found)} == set("abcd")
    (warning,) = found.warnings
    assert warning.startswith("4 of 12 images are outside the sub-folders ['train', 'test']")


def test_a_lone_split_folder_beside_other_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{i}_cam{c}.jpg" for i in range(8) for c in "12"))
    assert set(by_name(read(tmp_path)).values()) == {"train", "query", "gallery"}
    touch(tmp_path, "more/x_cam1.jpg")
    refuses(r"lie in \['train', 'more'\], which .* train and test \(or val\)", tmp_path)
    touch(tmp_path, "query/y_cam1.jpg", "test/y_cam2.jpg")
    refuses(r"lie in \['query', 'test', 'train', 'more'\], which", tmp_path)
    (tmp_path / "test.txt").write_text("0_cam1.jpg\n0_cam2.jpg\n")
    assert Counter(by_name(read(tmp_path, test_list="test.txt")).values())["query"] == 1


def test_the_pattern_can_name_the_split(tmp_path: Path) -> None:
    pattern = r"(?P<split>[a-z]+)-(?P<identity>\d+)_cam(?P<camera>\d)"
    touch(tmp_path, "train-1_cam1.jpg", "train-2_cam1.jpg", "query-3_cam1.jpg")
    touch(tmp_path, "gallery-3_cam2.jpg")
    assert by_name(read(tmp_path, pattern=pattern))["gallery-3_cam2.jpg"] == "gallery"
    touch(tmp_path, "val-4_cam1.jpg")
    refuses(r"`split` finds 'val' .* one of \['train'", tmp_path, pattern=pattern)


def test_held_out_identities_stay_when_others_are_added() -> None:
    names = {f"own:{i}" for i in range(200)}
    test = splits.held_out(names, 0.5, seed=0)
    assert 75 < len(test) < 125
    more = splits.held_out(names | {f"own:x{i}" for i in range(300)}, 0.5, seed=0)
    assert more & names == test
    assert splits.held_out(names, 0.5, seed=1) != test
    assert len(splits.held_out(names, 0.0001, seed=0)) == 2
    assert len(names - splits.held_out(names, 0.9999, seed=0)) == 2
    with pytest.raises(ValueError, match="3 identities cannot be split"):
        splits.held_out({"a", "b", "c"}, 0.5, seed=0)


def test_training_needs_two_identities(tmp_path: Path) -> None:
    two_cameras(tmp_path, 3)
    (tmp_path / "train.txt").write_text("v00_cam1.jpg\nv00_cam2.jpg\n")
    refuses("has 1 train identities; training needs at least 2", tmp_path, train_list="train.txt")


# Folder: queries


def listed(root: Path, *test: str, train: int = 2, **options: Any) -> reading.Reading:
    """Read a folder whose test images are `test`, beside `train` identities to train on."""
    touch(root, *test, *(f"train{i}_cam1.jpg" for i in range(train)))
    (root / "test.txt").write_text("\n".join(test))
    return read(root, test_list="test.txt", **options)


def test_one_image_per_camera_makes_the_first_camera_the_query(tmp_path: Path) -> None:
    found = by_name(listed(tmp_path, "a_cam2.jpg", "a_cam1.jpg", "a_cam3.jpg", "b_cam2.jpg",
                           "b_cam4.jpg"))  # fmt: skip
    queries = {name for name, split in found.items() if split == "query"}
    assert queries == {"a_cam1.jpg", "b_cam2.jpg"}


def test_more_images_give_one_query_per_identity_and_camera(tmp_path: Path) -> None:
    names = [f"{i}_cam{c}_{k}.jpg" for i in "abc" for c in "12" for k in range(4)]
    found = by_name(listed(tmp_path, *names))
    queries = [name for name, split in found.items() if split == "query"]
    assert sorted(name[:6] for name in queries) == sorted(
        f"{i}_cam{c}" for i in "abc" for c in "12"
    )
    assert found == by_name(listed(tmp_path, *names))
    assert found != by_name(listed(tmp_path, *names, seed=5))


def test_no_query_is_left_without_an_image_that_answers_it(tmp_path: Path) -> None:
    found = listed(tmp_path, "a_cam1_0.jpg", "a_cam1_1.jpg", "a_cam2_0.jpg", "b_cam1.jpg",
                   "b_cam2_0.jpg", "b_cam2_1.jpg", "b_cam2_2.jpg")  # fmt: skip
    assert reading.unanswerable(found.rows) == []
    splits_of = by_name(found)
    assert {"a_cam2_0.jpg", "b_cam1.jpg"} == {n for n, s in splits_of.items() if s == "query"}
    assert found.warnings == []


def test_an_identity_on_one_camera_stays_in_the_gallery_with_a_warning(tmp_path: Path) -> None:
    found = listed(tmp_path, "a_cam1.jpg", "a_cam2.jpg", "b_cam1_0.jpg", "b_cam1_1.jpg")
    assert by_name(found)["b_cam1_0.jpg"] == by_name(found)["b_cam1_1.jpg"] == "gallery"
    (warning,) = found.warnings
    assert warning.startswith("1 of 2 test identities")
    assert "one camera only (e.g. 'b' on '1')" in warning


def test_only_identities_on_one_camera_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"every test identity of .* one camera only \(e.g. 'a'"):
        listed(tmp_path, "a_cam1_0.jpg", "a_cam1_1.jpg", "b_cam2.jpg")


def test_without_cameras_each_identity_has_one_query(tmp_path: Path) -> None:
    options: dict[str, Any] = {"pattern": r"(?P<identity>[a-z]+\d*)"}
    names = ["a-0.jpg", "a-1.jpg", "b-0.jpg", "b-1.jpg", "b-2.jpg", "c-0.jpg"]
    found = listed(tmp_path, *names, **options)
    counts = Counter((row["identity"], row["split"]) for row in found.rows)
    assert counts["own:a", "query"] == counts["own:b", "query"] == counts["own:c", "gallery"] == 1
    assert "each has a single image (e.g. 'c')" in found.warnings[0]
    with pytest.raises(ValueError, match=r"has a single image .*needs a second image"):
        listed(tmp_path / "single", "a-0.jpg", "b-0.jpg", **options)


def test_query_cameras_decide_when_they_are_given(tmp_path: Path) -> None:
    names = ["a_cam1_0.jpg", "a_cam1_1.jpg", "a_cam2.jpg", "b_cam2.jpg", "c_cam1.jpg"]
    found = listed(tmp_path, *names, query_cameras=("1",))
    assert {n for n, s in by_name(found).items() if s == "query"} == {
        "a_cam1_0.jpg",
        "a_cam1_1.jpg",
    }
    (warning,) = found.warnings
    assert warning.startswith("1 of 3 test identities")
    assert "query cameras ['1'] only (e.g. 'c' on '1')" in warning
    with pytest.raises(ValueError, match=r"query camera '9' is on no test .* \['1', '2'\]"):
        listed(tmp_path, *names, query_cameras=("9",))
    with pytest.raises(ValueError, match="choose fewer query_cameras"):
        listed(tmp_path, *names, query_cameras=("1", "2"))


# Market-1501


def market(root: Path) -> Path:
    touch(root / "bounding_box_train", "0002_c1s1_000451_03.jpg", "0007_c2s3_000001_01.jpg")
    touch(root / "bounding_box_train", "Thumbs.db", "0000_c1s1_000001_00.jpg")
    touch(root / "query", "0001_c1s1_001051_00.jpg", "0003_c6s1_001051_00.jpg")
    touch(root / "bounding_box_test", "0001_c3s1_000001_01.jpg", "0003_c6s1_000009_01.jpg")
    touch(root / "bounding_box_test", "-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg")
    return root


def test_market1501_is_read_with_roles(tmp_path: Path) -> None:
    market(tmp_path)
    found = market1501.read_market1501(Market1501Source(root=str(tmp_path)))
    rows = {Path(row["locator"]).name: row for row in found.rows}
    assert len(rows) == 8
    row = rows["0002_c1s1_000451_03.jpg"]
    assert (row["identity"], row["camera"], row["split"]) == ("market1501:0002", "1", "train")
    junk, distractor = rows["-1_c1s1_000401_03.jpg"], rows["0000_c1s1_000151_01.jpg"]
    assert (junk["role"], junk["identity"], junk["split"]) == ("junk", None, "gallery")
    assert (distractor["role"], distractor["identity"]) == ("distractor", None)
    stray, lost = found.warnings
    assert "junk or distractors outside the gallery, e.g. '0000_c1s1_000001_00.jpg'" in stray
    assert lost.startswith("1 of 2 queries")
    assert "'market1501:0003' on camera '6'" in lost


@pytest.mark.parametrize(
    "nested", ["", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"]
)
def test_market1501_is_found_at_or_below_its_root(tmp_path: Path, nested: str) -> None:
    market(tmp_path / nested)
    assert market1501._locate(str(tmp_path)) == tmp_path / nested


def test_market1501_says_which_folders_are_missing(tmp_path: Path) -> None:
    (tmp_path / "market" / "query").mkdir(parents=True)
    missing = r"market' lacks \['bounding_box_train', 'bounding_box_test'\]; tried"
    with pytest.raises(ValueError, match=missing):
        market1501._locate(str(tmp_path))
    market(tmp_path / "a")
    market(tmp_path / "b")
    with pytest.raises(ValueError, match=r"holds 2 sets, \['a', 'b'\]; give one"):
        market1501._locate(str(tmp_path))


def test_market1501_without_an_answerable_query_is_refused(tmp_path: Path) -> None:
    market(tmp_path)
    (tmp_path / "bounding_box_test" / "0001_c3s1_000001_01.jpg").unlink()
    with pytest.raises(ValueError, match="none of the 2 queries"):
        market1501.read_market1501(Market1501Source(root=str(tmp_path)))


def test_market1501_with_an_identity_in_train_and_test_is_refused(tmp_path: Path) -> None:
    market(tmp_path)
    touch(tmp_path / "bounding_box_train", "0003_c1s1_000451_03.jpg")
    with pytest.raises(
        ValueError, match=r"1 identities of .* in both train and test, e\.g\. '0003'"
    ):
        market1501.read_market1501(Market1501Source(root=str(tmp_path)))


def test_rows_without_an_identity_are_in_no_ones_way() -> None:
    rows = [{"identity": None, "split": split} for split in ("train", "gallery")]
    named = {"identity": "own:a", "split": "train"}
    reading.check_disjoint([*rows, named], "here")
    # The same rows are refused as soon as a name is on both sides.
    with pytest.raises(ValueError, match="1 identities of here are in both train and test"):
        reading.check_disjoint([*rows, named, {**named, "split": "gallery"}], "here")


# Miniature and union


def test_a_long_tail_leaves_few_vehicles_many_images_and_the_test_as_it_is() -> None:
    options = {"num_train": 30, "num_test": 4, "images_per_camera": 6}
    even, tailed = (
        miniature.read_miniature(MiniatureSource(**options, long_tail=exponent)).rows
        for exponent in (0.0, 1.0)
    )
    left = [row for row in even if row["split"] != "train"]
    assert [row for row in tailed if row["split"] != "train"] == left
    cameras: dict[str, list[str]] = {}
    for row in tailed:
        if row["split"] == "train":
            cameras.setdefault(row["identity"], []).append(row["camera"])
    counts = sorted(map(len, cameras.values()), reverse=True)
    assert counts[:4] == [24, 12, 8, 6]
    assert counts[-1] == 2
    # What can be found again on another camera stays so.
    assert all(len(set(seen)) >= min(4, len(seen)) for seen in cameras.values())


def test_a_planned_drawing_is_the_one_that_is_drawn() -> None:
    source = MiniatureSource(num_train=2, num_test=2, cameras_per_identity=2, image_size=(24, 24))
    rows = miniature.read_miniature(source).rows
    assert Counter(row["split"] for row in rows) == {"train": 8, "query": 4, "gallery": 4}
    drawn = drawings.draw(rows[0]["locator"])
    planned = {name: value for name, value in rows[0].items() if name in drawn}
    assert planned == {name: drawn[name] for name in planned}
    assert drawn == drawings.draw(rows[0]["locator"])


def test_a_shot_has_the_id_of_its_picture() -> None:
    for kind in ("vehicle", "pedestrian"):
        shot = plan_street(kind, 1, 1, 2, 2, seed=3, size=(24, 16))[-1]
        row = draw_shot(shot)
        name = row["identity"].partition(":")[2]
        parts = (name, shot.camera, shot.index, 3, shot.outfit, 24, 16)
        assert shot.observation_id == schema.observation_id(row["source"], *parts)
        assert row["observation_id"] == shot.observation_id


def test_plan_unites_sources_in_the_order_of_ids(tmp_path: Path) -> None:
    sources = [
        FolderSource(root=str(touch(two_cameras(tmp_path / "a", 4), "odd.jpg"))),
        FolderSource(root=str(two_cameras(tmp_path / "b", 4))),
    ]
    table = planning.plan(sources)
    assert table.schema == planning.PLAN
    ids = table["observation_id"].to_pylist()
    assert ids == sorted(set(ids))
    assert pc.count_distinct(table["identity"]).as_py() == 8
    assert [warning[:10] for warning in planning.warnings(table)] == ["1 of 9 ima"]
    again = planning.plan(sources[::-1])
    assert again.drop_columns(["locator"]).equals(table.drop_columns(["locator"]))


def test_two_drawn_worlds_have_names_of_their_own() -> None:
    sources = [
        MiniatureSource(num_train=3, num_test=2, seed=seed, name=f"world{seed}") for seed in (0, 1)
    ]
    table = planning.plan(sources)
    assert set(table["source"].to_pylist()) == {"world0", "world1"}
    identities = {name.partition(":")[0] for name in table["identity"].to_pylist()}
    assert identities == {"world0", "world1"}
    row = loading.load(table["locator"][0].as_py())
    assert not {"source", "identity", "observation_id"} & row.keys()


def test_a_source_may_be_used_for_training_alone(tmp_path: Path) -> None:
    sources = [
        FolderSource(root=str(two_cameras(tmp_path / name, 4)), name=name)
        for name in ("target", "beside", "more")
    ]
    table = planning.plan(sources, {"beside": "train", "more": "whole"})
    counts = Counter(zip(*(table[name].to_pylist() for name in ("source", "split")), strict=True))
    assert counts[("target", "query")] == counts[("target", "gallery")] == 2
    assert counts[("beside", "train")] == 4
    assert counts[("more", "train")] == 8
    assert len(counts) == 5
    with pytest.raises(
        ValueError, match=r"ingest\.use names 'les', which is no source of \['beside'"
    ):
        planning.plan(sources, {"les": "train"})


def test_plan_refuses_two_sources_of_one_name(tmp_path: Path) -> None:
    source = FolderSource(root=str(two_cameras(tmp_path / "a", 4)))
    with pytest.raises(ValueError, match="two sources are named 'a'"):
        planning.plan([source, source])
    with pytest.raises(ValueError, match=r"ingest\.sources is empty"):
        planning.plan([])


def test_every_file_of_readers_is_an_entry_with_the_model_of_its_options() -> None:
    kinds = {layout.source.model_fields["reader"].default: name for name, layout in READERS.items()}
    assert kinds == {name: name for name in READERS}
    assert len({layout.source for layout in READERS.values()}) == len(READERS)
    files = Path(str(folder.__file__)).parent.glob("[!_]*.py")
    assert {file.stem for file in files} == set(READERS)


def test_parts_of_files_are_loaded_as_images_of_their_own(tmp_path: Path) -> None:
    pixels = np.zeros((6, 20, 3), np.uint8)
    pixels[:, 10:12], pixels[1:3, 4:9] = 200, 90
    file = tmp_path / "a:b.png"
    file.write_bytes(images.encode_png(pixels))
    third = images.decode(loading.load(loading.strip(file, 5, 10))["image"])
    assert third.shape == (6, 2, 3)
    assert (third == 200).all()
    box = images.decode(loading.load(loading.crop(file, (4, 1, 9, 3)))["image"])
    assert box.shape == (2, 5, 3)
    assert (box == 90).all()
    assert loading.load(loading.strip(file, 0, 3))["drop_reason"] == (
        "corrupt image: strip of 20 pixels is not 3 images of equal width"
    )
    assert (
        "is not within the image of 20 x 6"
        in (loading.load(loading.crop(file, (4, 1, 9, 7)))["drop_reason"])
    )
