from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_reid import images, schema
from ray_reid.datasets import loading, planning, reading, sources
from ray_reid.datasets.readers import READERS
from ray_reid.datasets.readers.imagefolder import ImageFolderSource
from ray_reid.datasets.readers.mot import MOTSource
from ray_reid.datasets.readers.oml import OMLSource
from ray_reid.datasets.readers.parquet import ParquetSource

KINDS: dict[str, Any] = {
    "imagefolder": ImageFolderSource,
    "mot": MOTSource,
    "oml": OMLSource,
    "parquet": ParquetSource,
}
MARKET = r"_c(?P<camera>\d+)"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def picture(grey: int, size: tuple[int, int] = (12, 16)) -> bytes:
    return images.encode_png(np.full((*size, 3), grey, np.uint8))


def read(kind: str, root: Path, **options: Any) -> reading.Reading:
    return sources.read(KINDS[kind](root=str(root), **options))


def refuses(match: str, kind: str, root: Path, **options: Any) -> None:
    with pytest.raises(ValueError, match=match):
        read(kind, root, **options)


# ImageFolder


def layumi(root: Path) -> Path:
    """What layumi's script makes of Market-1501."""
    train = [f"000{i}/000{i}_c{c}s1_000001_01.jpg" for i in (2, 7) for c in (1, 2)]
    touch(root / "pytorch/train_all", *train)
    touch(root / "pytorch/train", *train[1:])
    touch(root / "pytorch/val", train[0])
    touch(root / "pytorch/query", "0001/0001_c1s1_000001_00.jpg")
    touch(root / "pytorch/multi-query", *(f"0001/0001_c1s1_00000{i}_00.jpg" for i in (1, 2)))
    touch(root / "pytorch/gallery", "0001/0001_c3s1_000001_01.jpg")
    return touch(
        root / "pytorch/gallery", "-1/-1_c2s1_000001_01.jpg", "0000/0000_c1s1_1.jpg"
    ).parents[1]


def places(found: reading.Reading) -> Counter[str]:
    """First folder of every image below `pytorch`."""
    return Counter(row["locator"].rpartition("pytorch/")[2].split("/")[0] for row in found.rows)


def test_an_imagefolder_has_identities_for_folders(tmp_path: Path) -> None:
    root = layumi(tmp_path / "market")
    found = read("imagefolder", root, camera=MARKET, licence="x")
    assert found.warnings == []
    assert places(found) == {"train_all": 4, "query": 1, "gallery": 3}
    names = ("identity", "camera", "split", "role")
    assert {tuple(row[name] for name in names) for row in found.rows} == {
        ("market:0002", "1", "train", "normal"),
        ("market:0002", "2", "train", "normal"),
        ("market:0007", "1", "train", "normal"),
        ("market:0007", "2", "train", "normal"),
        ("market:0001", "1", "query", "normal"),
        ("market:0001", "3", "gallery", "normal"),
        (None, "2", "gallery", "junk"),
        (None, "1", "gallery", "distractor"),
    }
    assert {(row["licence"], row["source"]) for row in found.rows} == {("x", "market")}


def test_without_a_pattern_no_image_has_a_camera(tmp_path: Path) -> None:
    found = read("imagefolder", layumi(tmp_path), name="own")
    assert {row["camera"] for row in found.rows} == {None}


def test_train_and_queries_of_an_imagefolder_can_be_chosen(tmp_path: Path) -> None:
    root = layumi(tmp_path)
    found = read("imagefolder", root, train="train", query="multi-query")
    assert places(found) == {"train": 3, "multi-query": 2, "gallery": 3}
    source = ImageFolderSource(root=str(root), train="train", query="multi-query")
    (warning,) = sources.read(source).warnings
    assert warning.startswith("1 images of ")
    assert "(1 in 'pytorch/val')" in warning
    assert sources.read(ImageFolderSource(root=str(root))).warnings == []


def test_an_imagefolder_of_train_and_test_gets_queries(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{i}/{k}.jpg" for i in "ab" for k in "12"))
    touch(tmp_path, *(f"test/{i}/x_cam{k}.jpg" for i in "cd" for k in (1, 15)))
    found = read("imagefolder", tmp_path)
    assert Counter(row["split"] for row in found.rows) == {"train": 4, "query": 2, "gallery": 2}
    one = r"cam(?P<camera>\d)"
    touch(tmp_path, *(f"train/{i}/y_cam2.jpg" for i in "ab"))
    refuses(r"finds '1' in 'x_cam15.jpg'", "imagefolder", tmp_path, camera=one)
    cameras = read("imagefolder", tmp_path, camera=r"cam(?P<camera>\d+)")
    assert {row["camera"] for row in cameras.rows} == {"1", "2", "15"}
    assert cameras.warnings[0].startswith("4 images of ")


def test_images_outside_an_identity_s_folder_are_counted(tmp_path: Path) -> None:
    root = layumi(tmp_path)
    touch(
        root, "pytorch/query/lost.jpg", "pytorch/gallery/0001/deep/x.jpg", "pytorch/query/-1/x.jpg"
    )
    found = read("imagefolder", root)
    assert [warning.split(" ", 1)[0] for warning in found.warnings] == ["2", "1"]
    assert "lie in no folder <split>/<identity>, e.g. 'lost.jpg'" in found.warnings[0]
    assert "are junk (-1) outside the gallery" in found.warnings[1]


def test_an_identity_named_0000_with_queries_is_a_person(tmp_path: Path) -> None:
    root = touch(layumi(tmp_path), "pytorch/query/0000/0000_c2s1_1.jpg")
    found = read("imagefolder", root, name="own")
    assert Counter(row["identity"] for row in found.rows)["own:0000"] == 2


def test_an_incomplete_imagefolder_is_one_sentence(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "query/b/1.jpg")
    refuses(r"lacks \['gallery'\]", "imagefolder", tmp_path)
    refuses(
        "in both train and test, e.g. 'a'",
        "imagefolder",
        touch(tmp_path, "gallery/a/1.jpg", "gallery/b/2.jpg"),
    )
    for pattern, match in (("(", "is not a regular expression"), ("c", "needs .*camera")):
        with pytest.raises(ValueError, match=match):
            ImageFolderSource(root="x", camera=pattern)


def test_an_imagefolder_is_recognised_with_its_cameras(tmp_path: Path) -> None:
    recognise = READERS["imagefolder"].recognise
    found = recognise(layumi(tmp_path / "a"))
    assert found.camera is not None
    assert {row["camera"] for row in sources.read(found).rows} == {"1", "2", "3"}
    plain = touch(tmp_path / "b", *(f"{s}/x/1.jpg" for s in ("train", "query", "gallery")))
    assert recognise(plain) == ImageFolderSource(root=str(plain))
    assert recognise(touch(plain, "query/1.jpg")) is None
    assert recognise(touch(tmp_path / "c", "train/x/1.jpg", "test/y/1.jpg")) is None


# OML

HEADER = "label,split,is_query,is_gallery,path,sequence,category,x_1,x_2,y_1,y_2"
LINES = [
    "1,train,,,a.png,,coat,,,,",
    "2,train,,,b.png,4.0,coat,2.0,10.0,1.0,9.0",
    "3,validation,True,False,c.png,s1,,,,,",
    "3,validation,False,True,c.png,s2,,0,5,0,6",
    "4,validation,1.0,1.0,d.png,,,,,,",
]


def oml(root: Path, *lines: str, header: str = HEADER) -> Path:
    root.mkdir(exist_ok=True)
    for number, name in enumerate("abcd"):
        (root / f"{name}.png").write_bytes(picture(number))
    (root / "df.csv").write_text("\n".join([header, *lines]) + "\n")
    return root


def test_an_oml_table_has_labels_splits_sequences_and_boxes(tmp_path: Path) -> None:
    found = read("oml", oml(tmp_path, *LINES))
    names = ("identity", "split", "track", "camera", "attributes")
    values = [tuple(row[name] for name in names) for row in found.rows]
    assert values == [
        ("oml:1", "train", None, None, {"category": "coat"}),
        ("oml:2", "train", "4", None, {"category": "coat"}),
        ("oml:3", "query", "s1", None, None),
        ("oml:3", "gallery", "s2", None, None),
        ("oml:4", "query", "d.png", None, None),
        ("oml:4", "gallery", "d.png", None, None),
    ]
    assert found.rows[0]["observation_id"] == schema.observation_id("oml", "a.png")
    box = images.decode(loading.load(found.rows[1]["locator"])["image"])
    assert box.shape == (8, 8, 3)
    assert (box == 1).all()
    (warning,) = found.warnings
    assert warning.startswith("1 images of ")
    assert "must ignore the gallery images of a query's own track" in warning


def test_an_image_that_is_query_and_gallery_becomes_two_rows_of_one_track(tmp_path: Path) -> None:
    query, gallery = read("oml", oml(tmp_path, *LINES)).rows[-2:]
    assert query["observation_id"] != gallery["observation_id"]
    assert query["locator"] == gallery["locator"]
    assert query["track"] == gallery["track"]
    plan = planning.plan([OMLSource(root=str(tmp_path))])
    assert len(set(plan["observation_id"].to_pylist())) == 6


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("x,train,,,a.png,,,,,,", "line 7: label 'x' is not an integer"),
        ("1,test,,,a.png,,,,,,", "line 7: split 'test' is not one of"),
        ("1,train,True,,a.png,,coat,,,,", "line 7: is_query and is_gallery must be empty"),
        ("9,validation,,,a.png,,,,,,", "line 7: a validation image must be query or gallery"),
        ("9,validation,yes,,a.png,,,,,,", "line 7: is_query 'yes' is not True, False or empty"),
        ("9,validation,True,,a.png,,,,,,", "1 queries of .* not in the gallery, the first is '9'"),
        ("1,train,,,a.png,,shoe,,,,", "line 7: label '1' is of category 'shoe' here and of 'coat'"),
        ("1,train,,,z.png,,coat,,,,", "1 of 6 paths in .* are no file of .* first is 'z.png'"),
        ("1,train,,,../a.png,,coat,,,,", "line 7: path '../a.png' is not a path below root"),
        ("1,train,,,a.png,,coat,1,,,", r"line 7: a box needs all of .* only \['x_1'\] are given"),
        ("1,train,,,a.png,,coat,5,5,1,9", r"line 7: box \[5, 1, 5, 9\] .* needs 0 <= x_1 < x_2"),
        ("1,train,,,a.png,,coat,-1,5,1,9", r"line 7: box \[-1, 1, 5, 9\]"),
        ("1,train,,,a.png,,coat,1.5,5,1,9", "line 7: x_1 '1.5' is not an integer"),
        ("1,train,,,a.png,,coat,,,,", "2 rows of .* are of one image or box, '.*a.png'"),
        ("1,train,,,a.png", "line 7: not 11 cells"),
        ("3,train,,,b.png,,,,,,", "1 identities of .* are in both train and test, e.g. '3'"),
    ],
)
def test_what_oml_checks_is_checked(tmp_path: Path, line: str, match: str) -> None:
    refuses(match, "oml", oml(tmp_path, *LINES, line))


def test_the_columns_of_an_oml_table_are_checked(tmp_path: Path) -> None:
    root = oml(tmp_path, header="label,split,is_query,text")
    refuses(r"lacks the columns \['is_gallery', 'path'\] .*images are read, not texts", "oml", root)
    few = oml(tmp_path, header="label,split,is_query,is_gallery,path,x_1,x_2")
    refuses(r"has \['x_1', 'x_2'\] of the columns", "oml", few)
    lines = [f"{line},9" for line in LINES]
    found = read("oml", oml(tmp_path, *lines, header=f"{HEADER},note"))
    assert "the columns ['note'] of " in found.warnings[-1]


def test_the_table_of_oml_is_the_only_one_or_named(tmp_path: Path) -> None:
    root = oml(tmp_path, *LINES)
    known = READERS["oml"].recognise(root)
    assert known == OMLSource(root=str(root))
    files = sources.files(known)
    assert [file.name for file in files] == ["df.csv", "a.png", "b.png", "c.png", "d.png"]
    (root / "more.csv").write_text("x\n1\n")
    refuses("holds 2 .csv files; set table to the one of OML, .*'df.csv', 'more.csv'", "oml", root)
    assert READERS["oml"].recognise(root) is None
    assert len(read("oml", root, table="df.csv").rows) == 6
    refuses("table 'no.csv' is no file of", "oml", root, table="no.csv")


# Parquet


def table(**columns: list[Any]) -> pa.Table:
    """Two people to train on and one to search for."""
    given = {
        "identity": ["a", "b", "c", "c"],
        "split": ["train", "train", "query", "gallery"],
        "image": [picture(number) for number in range(4)],
        **columns,
    }
    return pa.table({name: values for name, values in given.items() if values})


def write(file: Path, data: pa.Table, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(data, file, **options)
    return file.parent


def greys(found: reading.Reading) -> list[int]:
    return [
        int(images.decode(loading.load(row["locator"])["image"])[0, 0, 0]) for row in found.rows
    ]


def test_parquet_rows_with_images_say_file_and_row(tmp_path: Path) -> None:
    write(tmp_path / "x" / "b:1.parquet", table(), row_group_size=3)
    more = table(identity=["e", "f", "g", "g"], image=[picture(n) for n in range(10, 14)])
    write(tmp_path / "a.parquet", more, row_group_size=2)
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary/c.parquet").touch()
    found = read("parquet", tmp_path, licence="CC0")
    assert found.warnings == []
    assert greys(found) == [10, 11, 12, 13, 0, 1, 2, 3]
    assert found.rows[7]["locator"] == loading.parquet_row(tmp_path / "x/b:1.parquet", 1, 0)
    assert found.rows[4]["identity"] == "parquet:a"
    assert {row["licence"] for row in found.rows} == {"CC0"}
    assert len({row["observation_id"] for row in found.rows}) == 8
    assert found.rows[1]["camera"] is None
    plan = planning.plan([ParquetSource(root=str(tmp_path))])
    assert plan.num_rows == 8


def test_rows_are_the_same_whatever_the_row_groups(tmp_path: Path) -> None:
    write(tmp_path / "a" / "t.parquet", table(), row_group_size=1)
    write(tmp_path / "b" / "t.parquet", table(), row_group_size=4)
    one, two = read("parquet", tmp_path / "a"), read("parquet", tmp_path / "b")
    ids = [row["observation_id"] for row in one.rows]
    assert ids == [row["observation_id"] for row in two.rows]
    assert greys(one) == greys(two)


def test_the_bytes_of_a_parquet_row_are_not_encoded_again(tmp_path: Path) -> None:
    jpeg = images.encode(np.full((8, 8, 3), 7, np.uint8))
    write(tmp_path / "t.parquet", table(image=[jpeg, b"no image", None, picture(3)]))
    rows = read("parquet", tmp_path).rows
    loaded = [loading.load(row["locator"]) for row in rows]
    assert loaded[0] == {"image": jpeg}
    assert loaded[1]["drop_reason"].startswith("corrupt image: not a readable image (8 bytes)")
    assert loaded[2]["drop_reason"].startswith("corrupt image: not a readable image (0 bytes)")
    (tmp_path / "t.parquet").unlink()
    gone = loading.load(rows[3]["locator"])
    assert gone["drop_reason"] == "corrupt image: cannot be read: No such file or directory"
    (tmp_path / "t.parquet").write_bytes(b"not parquet")
    broken = loading.load(rows[3]["locator"])
    assert broken["drop_reason"].startswith("corrupt image: cannot be read: ")


def test_row_groups_are_read_once_while_they_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    class Counted(pq.ParquetFile):
        def read_row_group(self, group: int, *args: Any, **options: Any) -> pa.Table:
            reads.append(group)
            return super().read_row_group(group, *args, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counted)
    write(tmp_path / "t.parquet", table(), row_group_size=2)
    found = read("parquet", tmp_path)
    order = [found.rows[i] for i in (0, 2, 1, 3)]
    for limit, expected in ((2**20, [0, 1]), (1, [0, 1, 0, 1])):
        monkeypatch.setattr(loading, "CACHE_BYTES", limit)
        monkeypatch.setattr(loading, "_groups", loading._Groups())
        reads.clear()
        assert [greys(reading.Reading([row], []))[0] for row in order] == [0, 2, 1, 3]
        assert reads == expected


def test_a_replaced_parquet_file_is_read_anew(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", table())
    found = read("parquet", tmp_path)
    assert greys(found) == [0, 1, 2, 3]
    write(tmp_path / "t.parquet", table(image=[picture(n) for n in range(50, 54)]))
    assert greys(found) == [50, 51, 52, 53]


def test_parquet_paths_are_below_the_root(tmp_path: Path) -> None:
    for number, name in enumerate("wxyz"):
        (tmp_path / f"{name}.png").write_bytes(picture(number))
    paths = [f"{name}.png" for name in "wxyz"]
    write(tmp_path / "tables/t.parquet", table(image=[], path=paths))
    found = read("parquet", tmp_path, table="tables")
    assert greys(found) == [0, 1, 2, 3]
    assert found.rows[0]["observation_id"] == schema.observation_id("parquet", "w.png")
    files = sources.files(ParquetSource(root=str(tmp_path), table="tables/t.parquet"))
    assert [file.name for file in files] == ["t.parquet", *paths]
    write(tmp_path / "tables/t.parquet", table(image=[], path=["/w.png", *paths[1:]]))
    refuses("path '/w.png' is not a path below root", "parquet", tmp_path)
    write(tmp_path / "tables/t.parquet", table(image=[], path=["w.png", *paths[:3]]))
    refuses("2 rows of .* are of one image or box", "parquet", tmp_path)


def test_parquet_columns_take_the_types_of_the_record(tmp_path: Path) -> None:
    attributes = pa.array([[("upper", "red")], None, [], None], pa.map_(pa.string(), pa.string()))
    made = table(identity=[1, 2, 3, 3], camera=[1, 1, 1, 2], time=[0, 1, 2, None])
    write(tmp_path / "t.parquet", made.append_column("attributes", attributes))
    rows = read("parquet", tmp_path).rows
    assert [row["identity"] for row in rows] == [f"parquet:{i}" for i in (1, 2, 3, 3)]
    assert [row["camera"] for row in rows] == ["1", "1", "1", "2"]
    assert [row.get("time") for row in rows] == [0.0, 1.0, 2.0, None]
    record = planning.plan([ParquetSource(root=str(tmp_path))])
    assert [("upper", "red")] in record["attributes"].to_pylist()


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (
            {"label": [1] * 4},
            r"has the unknown columns \['label'\]; choose from \['observation_id'",
        ),
        (
            {"identity": [], "image": []},
            r"lacks the columns \['identity', 'image or path'\]; it has",
        ),
        ({"split": ["train", "train", "val", "gallery"]}, "split 'val' is not one of"),
        ({"split": ["train", None, "query", "gallery"]}, "split None is not one of"),
        ({"role": ["normal"] * 3 + ["extra"]}, "role 'extra' is not one of"),
        ({"time": ["noon"] * 4}, "column 'time' is string, and must be double"),
        ({"image": ["text"] * 4}, "column 'image' is string, and must be binary"),
        ({"source": ["s"] * 4}, "identity 'a'; with it, identities are written source:identity"),
        ({"observation_id": ["x"] * 4}, "4 rows of .* are of one image"),
        ({"split": ["train", "query", "query", "gallery"]}, "has 1 train identities"),
        ({"split": ["train", "train", "train", "gallery"]}, "in both train and test, e.g. 'c'"),
        ({"camera": ["1"] * 4}, "none of the 1 queries of .* another camera"),
    ],
)
def test_a_parquet_table_that_breaks_a_rule_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], match: str
) -> None:
    refuses(match, "parquet", write(tmp_path / "t.parquet", table(**columns)))


def test_parquet_rows_that_were_dropped_stay_out(tmp_path: Path) -> None:
    reasons = [None] * 4 + ["colour: white"]
    grown = table(
        identity=["a", "b", "c", "c", "a"],
        split=["train", "train", "query", "gallery", "train"],
        image=[picture(number) for number in range(5)],
        drop_reason=reasons,
    )
    found = read("parquet", write(tmp_path / "t.parquet", grown))
    assert greys(found) == [0, 1, 2, 3]
    assert found.warnings[0].startswith("1 rows of ")


def test_a_table_for_training_alone_needs_no_queries(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", table(split=["train"] * 4, origin=["synthetic"] * 4))
    found = read("parquet", tmp_path)
    assert found.warnings == []
    assert {row["origin"] for row in found.rows} == {"synthetic"}


def test_sources_of_parquet_rows_must_not_be_those_of_another_source(tmp_path: Path) -> None:
    names = ["x:a", "y:b", "y:c", "y:c"]
    write(tmp_path / "a/t.parquet", table(identity=names, source=[n[0] for n in names]))
    write(tmp_path / "b/t.parquet", table(image=[picture(n) for n in range(9, 13)]))
    one = ParquetSource(root=str(tmp_path / "a"))
    assert [row["identity"] for row in sources.read(one).rows] == names
    assert planning.plan([one, ParquetSource(root=str(tmp_path / "b"), name="z")]).num_rows == 8
    with pytest.raises(ValueError, match="two sources are named 'y'"):
        planning.plan([one, ParquetSource(root=str(tmp_path / "b"), name="y")])


def test_large_row_groups_are_told_where_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_reid.datasets.readers import parquet

    write(tmp_path / "t.parquet", table())
    monkeypatch.setattr(parquet, "LARGE_GROUP", 10)
    assert read("parquet", tmp_path).warnings == []
    monkeypatch.setattr(parquet, "CACHE_BYTES", 20)
    (warning,) = read("parquet", tmp_path).warnings
    assert "write them with fewer rows, such as row_group_size=1024" in warning


def test_parquet_is_recognised_by_its_columns(tmp_path: Path) -> None:
    recognise = READERS["parquet"].recognise
    assert recognise(tmp_path) is None
    root = write(tmp_path / "a/t.parquet", table())
    assert recognise(root) == ParquetSource(root=str(root))
    assert recognise(write(tmp_path / "b/t.parquet", table(label=[1] * 4))) is None
    touch(tmp_path, "c/t.parquet")
    refuses("t.parquet' cannot be read as Parquet", "parquet", tmp_path / "c")
    refuses("is no Parquet file and holds none", "parquet", touch(tmp_path / "d", "x.txt"))


# MOTChallenge


def sequence(folder: Path, objects: Mapping[int, Sequence[int]], frames: int = 60) -> Path:
    """A sequence of 10 frames a second in which each object is seen in a range of frames."""
    file = folder / "img1" / "000001.png"
    touch(folder, *(f"img1/{frame:06d}.png" for frame in range(1, frames + 1)))
    pixels = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    file.write_bytes(images.encode_png(pixels))
    info = "[Sequence]\nname=x\nframeRate=10\nimWidth=60\nimHeight=40\n"
    (folder / "seqinfo.ini").write_text(info)
    lines = [
        f"{frame},{number},{10 * number - 3},6,20,30,1,1,1.0"
        for number, (first, last) in objects.items()
        for frame in range(first, last + 1)
    ]
    (folder / "gt").mkdir()
    (folder / "gt" / "gt.txt").write_text("\n".join(lines))
    return folder


def test_mot_asks_whether_an_object_is_known_again_after_a_gap(tmp_path: Path) -> None:
    sequence(tmp_path / "train" / "S-01", {1: (1, 60), 2: (1, 30)})
    tested = sequence(tmp_path / "val" / "S-02", {0: (1, 60), 1: (1, 60), 2: (1, 12)})
    with (tested / "gt" / "gt.txt").open("a") as labels:
        # Not counted, of another class, hardly visible, and hardly in the frame.
        for rest in ("7,1,1,30,30,0,1,1", "8,1,1,30,30,1,9,1", "9,1,1,30,30,1,1,0.1", ""):
            labels.write(f"\n1,{rest or '10,55,1,30,30,1,1,1'}")
    (source,) = sources.recognise(tmp_path)
    assert source.reader == "mot"
    source = source.model_copy(update={"gap": 2.5})
    found = sources.read(source)
    assert Counter((row["identity"], row["split"], row["role"]) for row in found.rows) == {
        ("mot:S-01-1", "train", "normal"): 6,
        ("mot:S-01-2", "train", "normal"): 3,
        ("mot:S-02-0", "query", "normal"): 1,
        ("mot:S-02-0", "gallery", "normal"): 3,
        ("mot:S-02-1", "query", "normal"): 1,
        ("mot:S-02-1", "gallery", "normal"): 3,
        (None, "gallery", "junk"): 4,
        ("mot:S-02-2", "gallery", "normal"): 2,
    }
    (short,) = found.warnings
    assert short.startswith("1 of 3 tested objects")
    assert "e.g. 'S-02-2'" in short
    asked = [row["time"] for row in found.rows if row["split"] == "query"]
    assert asked == [5.1, 5.1]
    # The first box begins left of the frame: it is cut to it.
    row = next(r for r in found.rows if r["identity"] == "mot:S-02-0" and r["time"] == 0.1)
    assert row["path"] == "val/S-02/img1/000001.png"
    whole = images.read(tested / "img1" / "000001.png")
    shown = images.decode(loading.load(row["locator"])["image"])
    assert np.array_equal(shown, whole[5:35, 0:16])
    assert planning.plan([source]).num_rows == len(found.rows)


def test_sequences_of_mot_are_divided_by_name_or_drawn_and_broken_ones_refused(
    tmp_path: Path,
) -> None:
    for name in ("M-02-DPM", "M-02-SDP", "M-04"):
        sequence(tmp_path / name, dict.fromkeys(range(4), (1, 60)))
    found = read("mot", tmp_path, gap=2.0, test_sequences=["M-04"])
    assert {r["identity"][:8] for r in found.rows if r["split"] == "query"} == {"mot:M-04"}
    assert "1 sequences of" in found.warnings[0]
    drawn = read("mot", tmp_path, gap=2.0)
    sides = {r["identity"]: r["split"] == "train" for r in drawn.rows if r["identity"]}
    assert len(sides) == 8
    assert set(sides.values()) == {True, False}
    refuses(r"test_sequences names 'X'.*choose from \['M-02-DPM', 'M-04'\]", "mot", tmp_path,
            test_sequences=["X"])  # fmt: skip
    labels = tmp_path / "M-04" / "gt" / "gt.txt"
    labels.write_text(labels.read_text() + "\n1,2,x")
    refuses(r"gt\.txt', line 241: '1,2,x' is not frame,id,left", "mot", tmp_path)
    (tmp_path / "M-02-DPM" / "seqinfo.ini").write_text("[Sequence]\nframeRate=10\n")
    refuses(r"seqinfo\.ini' does not say frameRate, imWidth", "mot", tmp_path)
    refuses("no MOTChallenge layout", "mot", touch(tmp_path / "none", "a.jpg"))
