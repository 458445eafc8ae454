import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_reid import images, schema
from ray_reid.datasets import loading, planning, reading, sources
from ray_reid.datasets.readers import READERS
from ray_reid.datasets.readers import ltcc as ltcc_reader
from ray_reid.datasets.readers.ccvid import CCVIDSource
from ray_reid.datasets.readers.dlcr import DLCRSource
from ray_reid.datasets.readers.last import LaSTSource
from ray_reid.datasets.readers.ltcc import LTCCSource
from ray_reid.datasets.readers.prcc import PRCCSource
from ray_reid.datasets.readers.vc_clothes import VCClothesSource

CLOTHES = ("prcc", "ltcc", "vc_clothes", "ccvid", "last")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def prcc(root: Path) -> Path:
    train = [f"rgb/train/{i}/{c}_cropped_rgb001.jpg" for i in ("001", "003") for c in "ABC"]
    test = [f"rgb/test/{c}/{i}/cropped_rgb001.jpg" for i in ("002", "005") for c in "ABC"]
    touch(
        root, "rgb/val/001/A_cropped_rgb900.jpg", *(n.replace("rgb/", "sketch/", 1) for n in test)
    )
    return touch(root, *train, *test, "sketch/train/001/A_cropped_rgb001.jpg")


def ltcc(root: Path) -> Path:
    touch(root, "train/001_1_c1_000001.png", "train/001_2_c12_000002.png")
    touch(root, "train/002_1_c3_000003.png", "query/094_1_c9_015923.png")
    return touch(root, "test/094_2_c11_015924.png", "info/cloth-change_id_train.txt")


def vc_clothes(root: Path) -> Path:
    touch(root, "train/0001-01-01-01.jpg", "train/0002-04-02-10.jpg")
    return touch(root, "query/0257-03-01-01.jpg", "gallery/0257-04-02-01.jpg")


def ccvid(root: Path) -> Path:
    lists = {
        "train": ["session1/001_01\t001\tu0_l0_s0_c0_a0", "session3/002_01 002  u1_l0_s0_c0_a0 "],
        "query": ["session1/076_04\t076\tu0_l0_s0_c0_a0", ""],
        "gallery": ["session3/076_04\t076\tu5_l0_s0_c0_a0"],
    }
    for name, lines in lists.items():
        touch(
            root, *(f"{line.split()[0]}/{i:05d}.jpg" for line in lines if line for i in range(1, 6))
        )
        (root / f"{name}.txt").write_text("\n".join(lines))
    return touch(root, "session2/900_01/00001.jpg")


def last(root: Path) -> Path:
    touch(root, "train/000001/000001_m7_s2_01.jpg", "train/000002/000002_m7_s3_02.jpg")
    for part in ("val", "test"):
        touch(root, f"{part}/query/000001_{part}_9_00.jpg")
        touch(root, f"{part}/gallery/000001/000001_{part}_8_00.jpg")
    return root


MAKERS: dict[str, Any] = {
    "prcc": (PRCCSource, prcc),
    "ltcc": (LTCCSource, ltcc),
    "vc_clothes": (VCClothesSource, vc_clothes),
    "ccvid": (CCVIDSource, ccvid),
    "last": (LaSTSource, last),
}


def read(kind: str, root: Path, **options: Any) -> reading.Reading:
    source, make = MAKERS[kind]
    return sources.read(source(root=str(root if root.exists() else make(root)), **options))


def columns(found: reading.Reading, *names: str) -> set[tuple[Any, ...]]:
    return {tuple(row[name] for name in names) for row in found.rows}


def place(row: reading.Row, root: Path) -> str:
    return Path(row["locator"].rpartition(":")[2]).relative_to(root).as_posix()


def refuses(match: str, kind: str, root: Path, **options: Any) -> None:
    with pytest.raises(ValueError, match=match):
        read(kind, root, **options)


# All of them


@pytest.mark.parametrize("kind", CLOTHES)
def test_a_set_is_found_below_its_parent_with_the_same_ids(tmp_path: Path, kind: str) -> None:
    source, make = MAKERS[kind]
    make(tmp_path / "data" / "set")
    (tmp_path / "data" / "other").mkdir()
    near = read(kind, tmp_path / "data" / "set")
    far = read(kind, tmp_path)
    assert far == near
    unlisted = "1 tracklets of .* are in none of the lists, e.g. 'session2/900_01'; they are left"
    assert [re.search(unlisted, text) is not None for text in near.warnings] == (
        [True] if kind == "ccvid" else []
    )
    assert {row["source"] for row in near.rows} == {kind}
    assert {row["licence"] for row in near.rows} == {source(root="x").licence}
    assert len({row["observation_id"] for row in near.rows}) == len(near.rows)


@pytest.mark.parametrize("kind", CLOTHES)
def test_a_reading_depends_on_its_images_and_lists(tmp_path: Path, kind: str) -> None:
    source, make = MAKERS[kind]
    made = source(root=str(make(tmp_path / "set")))
    files = sources.files(made)
    assert all(file.is_file() and file.is_relative_to(tmp_path / "set") for file in files)
    assert {row["locator"] for row in sources.read(made).rows} <= {str(file) for file in files}
    assert len(files) == len(set(files))
    lists = {file.name for file in files if file.suffix == ".txt"}
    assert lists == ({"train.txt", "query.txt", "gallery.txt"} if kind == "ccvid" else set())


@pytest.mark.parametrize("kind", CLOTHES)
def test_only_its_own_layout_recognises_a_set(tmp_path: Path, kind: str) -> None:
    source, make = MAKERS[kind]
    root = make(tmp_path / "set")
    known = {name: layout.recognise(root) for name, layout in READERS.items()}
    assert {name for name, found in known.items() if found is not None} == {kind}
    assert known[kind] == source(root=str(root))
    assert READERS[kind].recognise(touch(tmp_path / "none", "train/a.jpg")) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ltcc", "094_c9_1_015923.png"), ("vc_clothes", "0001_c1_01.jpg"), ("last", "person.jpg")],
)
def test_names_of_another_grammar_are_counted(tmp_path: Path, kind: str, name: str) -> None:
    _, make = MAKERS[kind]
    before = len(read(kind, make(tmp_path)).rows)
    found = read(kind, touch(tmp_path, f"train/{name}"))
    (warning,) = found.warnings
    assert warning.startswith("1 images of ")
    assert "have no name like" in warning
    assert f"e.g. '{name}'; they are left out" in warning
    assert len(found.rows) == before


@pytest.mark.parametrize(
    ("kind", "gone"),
    [("prcc", "rgb/test/C"), ("ltcc", "test"), ("vc_clothes", "gallery"), ("last", "test/gallery")],
)
def test_a_missing_folder_is_named(tmp_path: Path, kind: str, gone: str) -> None:
    _, make = MAKERS[kind]
    make(tmp_path)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    refuses(rf"lacks \['{gone.removeprefix('rgb/')}'\]; tried the folder itself", kind, tmp_path)


def test_published_counts_are_those_of_train() -> None:
    official = {name: READERS[name].official for name in MAKERS}
    assert official["prcc"](PRCCSource(root="x")) == {"train": (17896, 150)}
    assert official["prcc"](PRCCSource(root="x", val=True)) == {"train": (22898, 150)}
    assert official["last"](LaSTSource(root="x")) == {"train": (71248, 5000)}
    assert official["ltcc"](LTCCSource(root="x")) == {}
    assert all(READERS[name].terms for name in MAKERS)


# PRCC


def test_prcc_searches_camera_a_with_b_and_c(tmp_path: Path) -> None:
    found = read("prcc", tmp_path / "set")
    test = {(c, s) for _, c, s in columns(found, "identity", "camera", "split") if s != "train"}
    assert test == {("A", "gallery"), ("B", "query"), ("C", "query")}
    assert columns(found, "identity", "camera", "clothes", "split") >= {
        ("prcc:001", "A", "001", "train"),
        ("prcc:001", "B", "001", "train"),
        ("prcc:001", "C", "001C", "train"),
        ("prcc:005", "A", "005", "gallery"),
        ("prcc:005", "B", "005", "query"),
        ("prcc:005", "C", "005C", "query"),
    }
    row = next(row for row in found.rows if row["camera"] == "C" and row["split"] == "train")
    assert row["observation_id"] == schema.observation_id("prcc", "train/001/C_cropped_rgb001.jpg")


def test_prcc_takes_val_into_training_only_if_asked(tmp_path: Path) -> None:
    without = read("prcc", tmp_path / "set")
    joined = read("prcc", tmp_path / "set", val=True)
    assert len(joined.rows) == len(without.rows) + 1
    assert {row["split"] for row in joined.rows if "rgb900" in row["locator"]} == {"train"}
    source = PRCCSource(root=str(tmp_path / "set"), val=True)
    assert sum("val" in file.parts for file in sources.files(source)) == 1


def test_prcc_reads_colour_images_unless_root_says_sketch(tmp_path: Path) -> None:
    found = read("prcc", prcc(tmp_path))
    assert all("rgb" in Path(row["locator"]).parts for row in found.rows)
    touch(tmp_path, "sketch/train/003/C_cropped_rgb001.jpg")
    drawn = read("prcc", tmp_path / "sketch")
    assert all("sketch" in Path(row["locator"]).parts for row in drawn.rows)


def test_prcc_refuses_a_training_name_without_a_camera_letter(tmp_path: Path) -> None:
    found = read("prcc", touch(prcc(tmp_path), "rgb/train/001/cropped_rgb009.jpg"))
    assert "e.g. 'cropped_rgb009.jpg'" in found.warnings[0]


# LTCC and VC-Clothes


def test_ltcc_tells_outfit_before_camera_of_one_or_two_digits(tmp_path: Path) -> None:
    found = read("ltcc", tmp_path / "set")
    assert columns(found, "identity", "clothes", "camera", "split") == {
        ("ltcc:001", "001_1", "1", "train"),
        ("ltcc:001", "001_2", "12", "train"),
        ("ltcc:002", "002_1", "3", "train"),
        ("ltcc:094", "094_1", "9", "query"),
        ("ltcc:094", "094_2", "11", "gallery"),
    }


def test_ltcc_may_train_on_those_who_change_their_clothes_alone(tmp_path: Path) -> None:
    root = touch(ltcc(tmp_path), "train/003_1_c1_000004.png", "train/003_2_c2_000005.png")
    named = root / "info" / "cloth-change_id_train.txt"
    named.write_text("1\n003\n")
    source = LTCCSource(root=str(root), train_on="clothes_changing")
    found = ltcc_reader.read_ltcc(source)
    kept = {"ltcc:001", "ltcc:003", "ltcc:094"}
    assert {identity for (identity,) in columns(found, "identity")} == kept
    assert named in ltcc_reader.LAYOUT.files(source)
    named.write_text("1\nthree\n")
    with pytest.raises(ValueError, match="has the line 'three'; it lists numbers only"):
        ltcc_reader.read_ltcc(source)
    named.write_text("1\n")
    with pytest.raises(ValueError, match="has 1 train identities"):
        ltcc_reader.read_ltcc(source)


def test_vc_clothes_tells_camera_before_outfit(tmp_path: Path) -> None:
    found = read("vc_clothes", tmp_path / "set")
    assert columns(found, "identity", "clothes", "camera", "split") == {
        ("vc_clothes:0001", "0001_01", "1", "train"),
        ("vc_clothes:0002", "0002_02", "4", "train"),
        ("vc_clothes:0257", "0257_01", "3", "query"),
        ("vc_clothes:0257", "0257_02", "4", "gallery"),
    }


def test_a_person_in_train_and_test_is_refused(tmp_path: Path) -> None:
    root = touch(vc_clothes(tmp_path), "gallery/0001-01-01-02.jpg")
    refuses("1 identities of .* in both train and test, e.g. '0001'", "vc_clothes", root)


# CCVID


def test_ccvid_has_a_row_per_frame_and_a_track_per_tracklet(tmp_path: Path) -> None:
    found = read("ccvid", tmp_path / "set")
    assert Counter((row["split"], row["track"]) for row in found.rows) == {
        ("train", "session1/001_01"): 5,
        ("train", "session3/002_01"): 5,
        ("query", "session1/076_04"): 5,
        ("gallery", "session3/076_04"): 5,
    }
    assert columns(found, "identity", "clothes", "camera") == {
        ("ccvid:001", "001_u0_l0_s0_c0_a0", "1"),
        ("ccvid:002", "002_u1_l0_s0_c0_a0", "13"),
        ("ccvid:076", "076_u0_l0_s0_c0_a0", "4"),
        ("ccvid:076", "076_u5_l0_s0_c0_a0", "16"),
    }


def test_ccvid_takes_each_nth_frame_from_the_first(tmp_path: Path) -> None:
    found = read("ccvid", tmp_path / "set", every=3)
    frames = {Path(row["locator"]).name for row in found.rows}
    assert frames == {"00001.jpg", "00004.jpg"}
    assert len(found.rows) == 8
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        CCVIDSource(root="x", every=0)


def test_ccvid_takes_the_camera_from_the_folder_alone(tmp_path: Path) -> None:
    root = ccvid(tmp_path / "exp_12_data" / "session3" / "set_7")
    assert columns(read("ccvid", root), "camera") == {("1",), ("13",), ("4",), ("16",)}


def test_ccvid_counts_tracklets_without_images(tmp_path: Path) -> None:
    root = ccvid(tmp_path)
    with (root / "train.txt").open("a") as text:
        text.write("\nsession2/003_02\t003\tu0_l0_s0_c0_a0\n")
    found = read("ccvid", root)
    warning = found.warnings[0]
    assert warning.startswith("1 of 5 tracklets in the lists")
    assert "e.g. 'session2/003_02'" in warning


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("session1/001_01\t001", "train.txt', line 3: .* is not `session1/001_01 001 label`"),
        ("video1/001_01\t001\tu0", "train.txt', line 3: "),
        ("session1/../001_01 001 u0", "train.txt', line 3: "),
        ("session1/076_04\t076\tu0", "is listed twice in .*: train.txt and query.txt"),
        ("session1/001_01\t001\tu0", "is listed twice in .*: train.txt and train.txt"),
    ],
)
def test_ccvid_refuses_a_bad_line(tmp_path: Path, line: str, match: str) -> None:
    root = ccvid(tmp_path)
    with (root / "train.txt").open("a") as text:
        text.write(f"\n{line}\n")
    refuses(match, "ccvid", root)


# LaST


def test_last_has_no_cameras_and_outfits_in_train_only(tmp_path: Path) -> None:
    found = read("last", tmp_path / "set")
    assert columns(found, "identity", "clothes", "camera", "split") == {
        ("last:000001", "000001_01", None, "train"),
        ("last:000002", "000002_02", None, "train"),
        ("last:test_000001", None, None, "query"),
        ("last:test_000001", None, None, "gallery"),
    }


def test_last_can_be_tested_on_val(tmp_path: Path) -> None:
    found = read("last", tmp_path / "set", test="val")
    assert {row["identity"] for row in found.rows if row["split"] == "query"} == {"last:val_000001"}
    files = sources.files(LaSTSource(root=str(tmp_path / "set"), test="val"))
    assert not any("test" in file.relative_to(tmp_path).parts for file in files)


# DLCR


def strips(root: Path, *names: str, prompts: int = 10, width: int = 80) -> Path:
    """Strips whose variants have the grey level of their index, with a .txt beside each."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.repeat(np.arange(width, dtype=np.uint8) // 8, 16).reshape(width, 16).T
        file.write_bytes(images.encode_png(np.repeat(pixels[..., None], 3, axis=2)))
        lines = [f"Red coat {i}|Blue jeans |  black boots." for i in range(prompts)]
        file.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    return root


def read_dlcr(root: Path, parent: str, **options: Any) -> reading.Reading:
    return sources.read(DLCRSource(root=str(root), parent=parent, **options))


def test_a_strip_is_ten_synthetic_images_of_the_parent_s_identity(tmp_path: Path) -> None:
    root = strips(tmp_path, *(f"train/{n}.png" for n in ("001_1_c12_01", "002_1_c3_02")))
    found = read_dlcr(root, "ltcc")
    assert found.warnings == []
    assert len(found.rows) == len({row["observation_id"] for row in found.rows}) == 20
    assert columns(found, "source", "identity", "camera", "split", "origin", "generator") == {
        ("ltcc_dlcr", "ltcc:001", "12", "train", "synthetic", "dlcr"),
        ("ltcc_dlcr", "ltcc:002", "3", "train", "synthetic", "dlcr"),
    }
    assert columns(found, "licence") == {(LTCCSource(root="x").licence,)}
    assert len({row["clothes"] for row in found.rows}) == 20
    row = found.rows[3]
    assert row["prompt"] == "Red coat 3|Blue jeans |  black boots."
    assert row["attributes"] == {
        "upper": "red coat 3",
        "lower": "blue jeans",
        "footwear": "black boots",
        "variant": "3",
    }
    assert (images.decode(loading.load(row["locator"])["image"]) == 3).all()
    assert read_dlcr(root, "ltcc", licence="own", name="x").rows[0]["licence"] == "own"


@pytest.mark.parametrize("kind", CLOTHES)
def test_parents_of_strips_are_rows_of_the_parent_s_reader(tmp_path: Path, kind: str) -> None:
    _, make = MAKERS[kind]
    real = read(kind, make(tmp_path / "real"), name="mine")
    train = [row for row in real.rows if row["split"] == "train"]
    for row in train:
        strips(
            tmp_path / "made", Path(place(row, tmp_path / "real")).with_suffix(".png").as_posix()
        )
    if kind == "ccvid":
        strips(tmp_path / "made", "session1/076_04/00001.png")
        (tmp_path / "made/train.txt").write_text((tmp_path / "real/train.txt").read_text())
    found = read_dlcr(tmp_path / "made", kind, parent_name="mine")
    assert Counter(row["parent"] for row in found.rows) == {
        row["observation_id"]: 10 for row in train
    }
    known = {row["observation_id"]: row for row in train}
    for row in found.rows:
        assert row["identity"] == known[row["parent"]]["identity"]
        assert row["camera"] == known[row["parent"]]["camera"]
        assert row["licence"] == known[row["parent"]]["licence"]
        assert row["clothes"] not in {other["clothes"] for other in train}
    # The strip of the test video is not for training.
    assert len(found.warnings) == (1 if kind == "ccvid" else 0)


def test_strips_are_named_by_the_stem_or_the_whole_name(tmp_path: Path) -> None:
    names = ["001/A_1.jpg.png", "001/A_2.png", "003/B_3.jpg", "003/A_2.jpg", "003/A_2.png"]
    root = strips(tmp_path, *(f"rgb/train/{name}" for name in names))
    found = read_dlcr(root, "prcc")
    assert Counter(row["parent"] for row in found.rows) == {
        schema.observation_id("prcc", f"train/{name}"): 10
        for name in ("001/A_1.jpg", "001/A_2.jpg", "003/B_3.jpg", "003/A_2.jpg")
    }
    (warning,) = found.warnings
    assert warning.startswith("1 images of ")
    assert "are beside a strip of the same image, e.g. 'A_2.jpg'" in warning
    assert all(row["prompt"] for row in found.rows)


def test_prompts_that_are_missing_or_too_few_are_unknown(tmp_path: Path) -> None:
    root = strips(tmp_path, "train/001_1_c1_01.png", "train/002_1_c1_01.png")
    strips(root, "train/003_1_c1_01.png", prompts=9)
    (root / "train/001_1_c1_01.txt").unlink()
    found = read_dlcr(root, "ltcc")
    assert Counter(row["prompt"] is None for row in found.rows) == {True: 20, False: 10}
    assert found.rows[0]["attributes"] == {"variant": "0"}
    (warning,) = found.warnings
    assert warning.startswith("2 of 3 strips of ")
    assert "have no .txt of 10 lines" in warning


def test_a_strip_of_a_wrong_width_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    root = strips(tmp_path, "train/001_1_c1_01.png", "train/002_1_c1_01.png", width=84)
    row = read_dlcr(root, "ltcc").rows[0]
    assert loading.load(row["locator"])["drop_reason"] == (
        "corrupt image: strip of 84 pixels is not 10 images of equal width"
    )


def test_strips_may_have_another_number_of_variants(tmp_path: Path) -> None:
    root = strips(tmp_path, "train/001_1_c1_01.png", "train/002_1_c1_01.png", prompts=4)
    assert len(read_dlcr(root, "ltcc", variants=4).rows) == 8


def test_strips_of_unlisted_videos_are_said_to_be_taken_for_training(tmp_path: Path) -> None:
    root = strips(tmp_path, "session1/001_01/00001.png", "session2/002_01/00001.png")
    found = read_dlcr(root, "ccvid")
    assert "has no train.txt; all its strips" in found.warnings[0]
    assert {row["identity"] for row in found.rows} == {"ccvid:001", "ccvid:002"}


def test_one_file_per_variant_says_whose_clothes_it_shows(tmp_path: Path) -> None:
    names = ["AB_003/001/A_cropped_rgb001.png", "C_003/001/A_cropped_rgb001.png"]
    touch(tmp_path, *(f"prcc/{n}" for n in (*names, "AB_001/003/C_cropped_rgb009.png")))
    touch(tmp_path, "prcc/AB_001/005/cropped_rgb001.png", "prcc/train/001/A_cropped_rgb001.jpg")
    found = read_dlcr(tmp_path, "prcc", form="images")
    assert {(r["identity"], r["clothes"], r["camera"], r["prompt"]) for r in found.rows} == {
        ("prcc:001", "001_AB_003", "A", None),
        ("prcc:001", "001_C_003", "A", None),
        ("prcc:003", "003_AB_001", "C", None),
    }
    parents = Counter(row["parent"] for row in found.rows)
    assert parents[schema.observation_id("prcc", "train/001/A_cropped_rgb001.jpg")] == 2
    # A variant of a query, as the authors use it for refinement, is not for training.
    (warning,) = found.warnings
    assert "e.g. 'cropped_rgb001.png'" in warning
    source = DLCRSource(root=str(tmp_path), parent="prcc", form="images")
    assert len(sources.files(source)) == 4


def test_the_form_of_single_images_is_that_of_prcc() -> None:
    with pytest.raises(ValueError, match="form 'images' is known of parent 'prcc', not of 'ltcc'"):
        DLCRSource(root="x", parent="ltcc", form="images")


def test_a_root_without_strips_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no ltcc \(for DLCR\) layout in .* lacks \['train'\]"):
        read_dlcr(tmp_path, "ltcc")
    with pytest.raises(ValueError, match="no folder named like AB_001 or C_001 in"):
        read_dlcr(tmp_path, "prcc", form="images")
    with pytest.raises(ValueError, match=r"1 images of .* have no name of ltcc, e\.g\. 'a\.png'"):
        read_dlcr(touch(tmp_path, "train/a.png"), "ltcc")


def test_strips_become_a_plan_beside_their_parents(tmp_path: Path) -> None:
    root = ltcc(tmp_path / "real")
    strips(tmp_path / "made", "train/001_1_c1_000001.png", "train/002_1_c3_000003.png")
    made = DLCRSource(root=str(tmp_path / "made"), parent="ltcc")
    plan = planning.plan([LTCCSource(root=str(root)), made])
    assert plan.num_rows == 5 + 20
    assert set(plan["parent"].drop_null().to_pylist()) < set(plan["observation_id"].to_pylist())
