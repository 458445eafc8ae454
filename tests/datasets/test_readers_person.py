import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.io import savemat

from ray_reid import images
from ray_reid.datasets import cuhk03_mat, loading, planning, sources
from ray_reid.datasets.readers import READERS
from ray_reid.datasets.readers.cuhk03 import CUHK03Source
from ray_reid.datasets.readers.cuhk03_np import CUHK03NPSource
from ray_reid.datasets.readers.dukemtmc import DukeMTMCSource
from ray_reid.datasets.readers.market1501 import Market1501Source
from ray_reid.datasets.readers.msmt17 import MSMT17Source
from ray_reid.datasets.readers.prid2011 import PRID2011Source
from ray_reid.datasets.readers.viper import VIPeRSource
from ray_reid.datasets.reading import ReaderSource, Reading, Row

PERSON = ("market1501", "dukemtmc", "msmt17", "cuhk03", "cuhk03_np", "viper", "prid2011")


def touch(root: Path, *names: str) -> Path:
    """Empty files; a reader looks at names only."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def by_name(found: Reading) -> dict[str, Row]:
    return {Path(row["locator"]).name: row for row in found.rows}


def identities(found: Reading, split: str) -> set[str]:
    return {row["identity"].partition(":")[2] for row in found.rows if row["split"] == split}


def refuses(match: str, source: ReaderSource) -> None:
    with pytest.raises(ValueError, match=match):
        sources.read(source)


def official(source: ReaderSource) -> Any:
    return READERS[source.reader].official(source)


# The folders of Market-1501


def market(root: Path) -> Path:
    touch(root / "bounding_box_train", "0002_c1s1_000451_03.jpg", "0007_c2s3_000001_01.JPG")
    touch(root / "query", "0001_c1s1_001051_00.jpg")
    touch(root / "bounding_box_test", "0001_c3s1_000001_01.jpg", "0000_c1s1_000151_01.jpg")
    return root


def duke(root: Path) -> Path:
    touch(root / "bounding_box_train", "0002_c1_f0046182.jpg", "0007_c8_f0046182.jpg")
    touch(root / "query", "0005_c2_f0046985.jpg")
    touch(root / "bounding_box_test", "0005_c5_f0051341.jpg", "6666_c1_f0051341.jpg")
    return root


def cuhk03_np(root: Path, *kinds: str) -> Path:
    for kind in kinds or ("labeled", "detected"):
        touch(root / kind / "bounding_box_train", "0003_c1_21.png", "0004_c2_31.png")
        touch(root / kind / "query", "0000_c1_1.png", "0009_c2_2.png")
        touch(root / kind / "bounding_box_test", "0000_c2_6.png", "0009_c1_12.png")
    return root


def test_market1501_reads_its_three_folders_only(tmp_path: Path) -> None:
    touch(market(tmp_path), "gt_bbox/0001_c2s1_000001_00.jpg", "images/0000_c2s1_000001_00.jpg")
    found = sources.read(Market1501Source(root=str(tmp_path)))
    assert len(found.rows) == 5
    assert found.warnings == []


def test_market1501_takes_more_distractors_when_asked(tmp_path: Path) -> None:
    source = Market1501Source(root=str(market(tmp_path)), distractors=True)
    refuses("has no images in a folder 'images'; unpack the distractors there", source)
    names = ["0000_c2s1_000001_00.jpg", "0002_c3s1_000001_00.jpg", "x.jpg", "-1_c4s1_000001_00.jpg"]
    touch(tmp_path / "images", *names)
    rows = by_name(sources.read(source))
    assert len(rows) == 9
    more = [rows[name] for name in names]
    assert [row["role"] for row in more] == ["distractor", "distractor", "distractor", "junk"]
    assert {(row["identity"], row["split"]) for row in more} == {(None, "gallery")}
    assert [row["camera"] for row in more] == ["2", "3", None, "4"]
    assert tmp_path / "images" / "x.jpg" in sources.files(source)
    assert official(source).keys() == {"train", "query"}


def test_a_variant_of_market1501_has_its_own_name_and_terms(tmp_path: Path) -> None:
    source = Market1501Source(root=str(market(tmp_path)), name="hq_market", licence="MIT")
    row = by_name(sources.read(source))["0002_c1s1_000451_03.jpg"]
    assert (row["identity"], row["licence"]) == ("hq_market:0002", "MIT")


@pytest.mark.parametrize("nested", ["", "DukeMTMC-reID", "dukemtmc-reid/DukeMTMC-reID"])
def test_dukemtmc_is_read_with_a_word_about_its_withdrawal(tmp_path: Path, nested: str) -> None:
    duke(tmp_path / nested)
    found = sources.read(DukeMTMCSource(root=str(tmp_path)))
    rows = by_name(found)
    train = rows["0007_c8_f0046182.jpg"]
    assert (train["identity"], train["camera"], train["split"]) == ("dukemtmc:0007", "8", "train")
    # People whom one camera saw are the gallery's, not distractors.
    assert rows["6666_c1_f0051341.jpg"]["identity"] == "dukemtmc:6666"
    assert {row["role"] for row in found.rows} == {"normal"}
    (withdrawn,) = found.warnings
    assert "was withdrawn by its authors in 2019" in withdrawn
    assert "withdrawn" in train["licence"]


def test_occluded_duke_may_lie_inside_dukemtmc(tmp_path: Path) -> None:
    touch(duke(tmp_path), "query/0005_c3_f0000001.jpg")
    duke(tmp_path / "Occluded_Duke")
    source = DukeMTMCSource(root=str(tmp_path), occluded=True)
    assert len(sources.read(source).rows) == 5
    assert len(sources.read(DukeMTMCSource(root=str(tmp_path))).rows) == 6
    inside = DukeMTMCSource(root=str(tmp_path / "Occluded_Duke"), occluded=True)
    assert sources.read(inside).rows == sources.read(source).rows
    assert official(source) == {}
    found = READERS["dukemtmc"].recognise(tmp_path / "Occluded_Duke")
    assert (found.name, found.occluded) == ("occluded_duke", True)


def test_sets_with_the_same_folders_refuse_each_others_names(tmp_path: Path) -> None:
    refuses("have no name like 0001_c2_f", DukeMTMCSource(root=str(market(tmp_path / "market"))))
    refuses("no name like 0002_c1s1", Market1501Source(root=str(duke(tmp_path / "duke"))))
    refuses(
        r"lacks \['bounding_box_train', 'query', 'bounding_box_test'\]",
        DukeMTMCSource(root=str(touch(tmp_path / "other", "a.jpg"))),
    )


def test_dukemtmc_names_with_two_digits_of_a_camera_are_read_whole(tmp_path: Path) -> None:
    touch(duke(tmp_path), "bounding_box_train/0002_c15_f0046182.jpg", "query/0005_c2.jpg")
    found = sources.read(DukeMTMCSource(root=str(tmp_path)))
    assert by_name(found)["0002_c15_f0046182.jpg"]["camera"] == "15"
    assert "1 images" in found.warnings[1]
    assert "e.g. '0005_c2.jpg'" in found.warnings[1]


def test_cuhk03_np_has_two_kinds_of_boxes(tmp_path: Path) -> None:
    cuhk03_np(tmp_path / "cuhk03-np")
    labeled = sources.read(CUHK03NPSource(root=str(tmp_path)))
    detected = sources.read(CUHK03NPSource(root=str(tmp_path), boxes="detected"))
    assert {Path(row["locator"]).parts[-3] for row in labeled.rows} == {"labeled"}
    assert {Path(row["locator"]).parts[-3] for row in detected.rows} == {"detected"}
    ids = [{row["observation_id"] for row in found.rows} for found in (labeled, detected)]
    assert not ids[0] & ids[1]
    # Identity 0 is a person, not a distractor as in Market-1501.
    assert identities(labeled, "query") == {"0000", "0009"}
    assert official(CUHK03NPSource(root="", boxes="detected"))["gallery"] == (5332, 700)


def test_cuhk03_np_is_found_from_the_folder_of_its_boxes(tmp_path: Path) -> None:
    cuhk03_np(tmp_path)
    whole = sources.read(CUHK03NPSource(root=str(tmp_path), boxes="detected"))
    inside = CUHK03NPSource(root=str(tmp_path / "detected"), boxes="detected")
    assert sources.read(inside).rows == whole.rows
    refuses("lacks .'labeled/bounding_box_train", CUHK03NPSource(root=str(tmp_path / "detected")))


# MSMT17


def msmt17(root: Path, train: str = "train", test: str = "test") -> Path:
    """Two train people, one of them in val, and two test people who count from 0 again."""
    lists = {
        (train, "list_train.txt"): ["0000/0000_000_01_0303morning_0008_0.jpg 0",
                                    "0001/0001_000_15_0303noon_0008_0.jpg 1"],
        (train, "list_val.txt"): ["0001/0001_001_02_0303noon_0009_1.jpg 1"],
        (test, "list_query.txt"): ["0000/0000_000_01_0302morning_0015_0.jpg 0",
                                   "0001/0001_000_11_0302morning_0015_0.jpg 1"],
        (test, "list_gallery.txt"): ["0000/0000_001_14_0302morning_0015_2.jpg 0",
                                     "0001/0001_009_02_0302morning_0015_2.jpg 1"],
    }  # fmt: skip
    for (folder, name), lines in lists.items():
        touch(root / folder, *(line.split()[0] for line in lines))
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def append(file: Path, line: str) -> None:
    file.write_text(file.read_text() + line + "\n")


@pytest.mark.parametrize(
    ("nested", "folders"),
    [
        ("", ("train", "test")),
        ("MSMT17_V1", ("train", "test")),
        ("x/MSMT17_V2", ("mask_train_v2", "mask_test_v2")),
    ],
)
def test_both_versions_of_msmt17_are_read(
    tmp_path: Path, nested: str, folders: tuple[str, str]
) -> None:
    root = msmt17(tmp_path / nested, *folders)
    found = sources.read(MSMT17Source(root=str(tmp_path)))
    assert Counter(row["split"] for row in found.rows) == {"train": 2, "query": 2, "gallery": 2}
    row = by_name(found)["0001_000_15_0303noon_0008_0.jpg"]
    assert row["camera"] == "15"
    assert row["attributes"] == {"date": "0303", "day_part": "noon"}
    assert row["locator"].startswith(str(root / folders[0] / "0001"))


def test_people_of_msmt17_are_others_in_train_and_test(tmp_path: Path) -> None:
    found = sources.read(MSMT17Source(root=str(msmt17(tmp_path))))
    assert identities(found, "train") == {"train_0000", "train_0001"}
    assert identities(found, "query") == identities(found, "gallery") == {"test_0000", "test_0001"}


def test_val_of_msmt17_is_trained_on_only_when_asked(tmp_path: Path) -> None:
    source = MSMT17Source(root=str(msmt17(tmp_path)))
    (unused,) = sources.read(source).warnings
    assert unused.startswith("1 images of list_val.txt")
    assert "set combine_val" in unused
    both = MSMT17Source(root=str(tmp_path), combine_val=True)
    found = sources.read(both)
    assert found.warnings == []
    assert by_name(found)["0001_001_02_0303noon_0009_1.jpg"]["split"] == "train"
    assert "train" not in official(source)
    assert official(both)["train"] == (32621, 1041)


def test_msmt17_without_a_list_of_val_is_refused_only_if_it_is_asked_for(tmp_path: Path) -> None:
    (msmt17(tmp_path) / "list_val.txt").unlink()
    (warning,) = sources.read(MSMT17Source(root=str(tmp_path))).warnings
    assert "are in no list, e.g. '0001_001_02_0303noon_0009_1.jpg'" in warning
    refuses(
        "cannot read '.*list_val.txt': No such file",
        MSMT17Source(root=str(tmp_path), combine_val=True),
    )


def test_lists_of_msmt17_are_held_against_the_images(tmp_path: Path) -> None:
    touch(msmt17(tmp_path), "test/0002/0002_000_01_0302morning_0001_0.jpg", "test/0002/x.jpg")
    touch(tmp_path, "test/0003/0003_000_01_0302morning_0001_0.jpg")
    gallery = tmp_path / "list_gallery.txt"
    append(gallery, "0000/0000_001_14_0302morning_0015_2.jpg 0")
    append(gallery, "0000/0000_077_14_0302morning_0015_2.jpg 0  ")
    append(gallery, "0002/0002_000_01_0302morning_0001_0.jpg 5")
    append(gallery, "0002/x.jpg 2")
    found = sources.read(MSMT17Source(root=str(tmp_path), combine_val=True))
    assert Counter(row["split"] for row in found.rows)["gallery"] == 2
    absent, repeated, strange, idle = found.warnings
    assert "1 images" in absent
    assert "not on the disk, e.g. '0000_077" in absent
    assert "are listed again, e.g. '0000_001" in repeated
    assert strange.startswith("2 images")
    assert "are in no list, e.g. '0003_000" in idle


def test_lists_of_msmt17_may_lack_suffixes_and_end_in_spaces(tmp_path: Path) -> None:
    msmt17(tmp_path)
    names = ["0000/0000_000_01_0303morning_0008_0 0 ", "./0001/0001_000_15_0303noon_0008_0.JPG 1\r"]
    (tmp_path / "list_train.txt").write_text("\n".join([*names, ""]))
    assert len(identities(sources.read(MSMT17Source(root=str(tmp_path))), "train")) == 2
    append(tmp_path / "list_train.txt", "0000_000_01_0303morning_0008_0.jpg")
    refuses(
        "list_train.txt', line 3: '0000_.*jpg' is not `path label`",
        MSMT17Source(root=str(tmp_path)),
    )


def test_msmt17_says_which_folders_it_wants(tmp_path: Path) -> None:
    msmt17(tmp_path, "a", "b")
    refuses("images of neither version of MSMT17; .* train and test or mask_train_v2 and",
            MSMT17Source(root=str(tmp_path)))  # fmt: skip
    msmt17(msmt17(tmp_path), "mask_train_v2", "mask_test_v2")
    refuses("images of both versions", MSMT17Source(root=str(tmp_path)))
    (tmp_path / "list_query.txt").unlink()
    refuses(r"no MSMT17 layout .* lacks \['list_query.txt'\]", MSMT17Source(root=str(tmp_path)))


def test_a_parent_folder_of_msmt17_is_no_part_of_its_names(tmp_path: Path) -> None:
    root = msmt17(tmp_path / "exp_12_c3_data")
    found = sources.read(MSMT17Source(root=str(root)))
    assert {row["camera"] for row in found.rows} == {"01", "15", "11", "14", "02"}


# CUHK03

# People by camera pair, with the columns that have an image.
PEOPLE = {(1, 1): (1, 6), (1, 2): (2, 7), (1, 3): (1, 10), (2, 1): (5, 6), (2, 2): (1, 8, 9)}
TESTS = [[(1, 1), (2, 1)], [(1, 2), (2, 2)]]
NAMES = [
    f"{pair}_{person:03d}_{1 if column <= 5 else 2}_{column:02d}"
    for (pair, person), columns in PEOPLE.items()
    for column in columns
]


class StandIn:
    """What cuhk03_mat uses of h5py, on arrays in memory."""

    class Reference:
        pass

    def __init__(self) -> None:
        self.files: dict[Path, dict[Any, NDArray[Any]]] = {}
        self.module = SimpleNamespace(File=self.open)

    def open(self, file: Path, mode: str) -> Any:
        if file not in self.files:
            raise OSError("file signature not found")
        return _Opened(self.files[file])


class _Opened:
    def __init__(self, objects: dict[Any, NDArray[Any]]) -> None:
        self.objects = objects

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return self.objects[key]

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *problem: object) -> None:
        pass


def picture(pair: int, person: int, column: int) -> NDArray[np.uint8]:
    """No two are alike, and height, width and channels can be told apart."""
    pixels = np.zeros((6, 4, 3), np.uint8)
    pixels[0, 1], pixels[2, 3], pixels[..., 2] = 10 * pair, 20 * person, column
    return pixels


def fill(add: Callable[[NDArray[Any], str | None], Any]) -> None:
    """Add the objects of a cuhk-03.mat; `add` stores an array and returns a reference to it."""

    def cell(values: list[Any]) -> NDArray[Any]:
        array = np.empty((len(values), 1), object)
        array[:, 0] = values
        return array.T

    for boxes in ("labeled", "detected"):
        pairs = []
        for pair in (1, 2):
            numbers = [person for p, person in PEOPLE if p == pair]
            people = np.empty((len(numbers), 10), object)
            for person, column in np.ndindex(people.shape):
                there = column + 1 in PEOPLE[pair, person + 1]
                full = picture(pair, person + 1, column + 1 + 100 * (boxes == "detected"))
                people[person, column] = add(full.T if there else np.zeros(2, np.uint64), None)
            pairs.append(add(people.T, None))
        add(cell(pairs), boxes)
    add(cell([add(np.array(test, np.float64).T, None) for test in TESTS]), "testsets")


Write = Callable[[Path], Path]


@pytest.fixture(params=["stand-in", "h5py"])
def write(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a cuhk-03.mat; once as it is in memory, once with the real library."""
    if request.param == "stand-in":
        library = StandIn()
        monkeypatch.setitem(sys.modules, "h5py", library.module)

        def in_memory(file: Path) -> Path:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            objects = library.files[file] = {}

            def add(array: NDArray[Any], name: str | None) -> Any:
                key = name or library.Reference()
                objects[key] = array
                return key

            fill(add)
            return file

        return in_memory
    h5py = pytest.importorskip("h5py")

    def on_disk(file: Path) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(file, "w") as mat:

            def add(array: NDArray[Any], name: str | None) -> Any:
                place = name or f"#refs#/{len(mat.get('#refs#', ()))}"
                kind = h5py.ref_dtype if array.dtype == object else array.dtype
                return mat.create_dataset(place, data=array.astype(kind), dtype=kind).ref

            fill(add)
        return file

    return on_disk


def cell(names: list[str]) -> NDArray[Any]:
    """As scipy writes a MATLAB cell of strings."""
    array = np.empty((len(names), 1), object)
    array[:, 0] = names
    return array


def config(root: Path, boxes: str = "labeled", **changes: Any) -> Path:
    """The file of the new protocol: the first two people to train on, the others to search."""
    names = [f"{name}.png" for name in NAMES]
    train = [i for i, name in enumerate(names, 1) if name[:5] in ("1_001", "1_002")]
    rest = [i for i in range(1, len(names) + 1) if i not in train]
    query = [i for i in rest if names[i - 1].split("_")[2] == "1"]
    fields = {
        "filelist": cell(names),
        "train_idx": np.array([train]).T,
        "query_idx": np.array([query]).T,
        "gallery_idx": np.array([[i for i in rest if i not in query]]).T,
        "labels": np.array([[1] * len(names)]).T,
    }
    root.mkdir(parents=True, exist_ok=True)
    file = root / f"cuhk03_new_protocol_config_{boxes}.mat"
    savemat(file, {key: value for key, value in (fields | changes).items() if value is not None})
    return file


def extracted(root: Path, boxes: str = "labeled") -> Path:
    touch(root / f"images_{boxes}", *(f"{name}.png" for name in NAMES))
    config(root, boxes)
    return root


def test_cuhk03_is_read_from_its_extracted_images(tmp_path: Path) -> None:
    extracted(tmp_path / "cuhk03")
    found = sources.read(CUHK03Source(root=str(tmp_path)))
    assert found.warnings == []
    assert identities(found, "train") == {"1_001", "1_002"}
    assert identities(found, "query") == identities(found, "gallery") == {"1_003", "2_001", "2_002"}
    row = by_name(found)["2_002_2_09.png"]
    assert (row["identity"], row["camera"], row["split"]) == ("cuhk03:2_002", "2", "gallery")
    assert official(CUHK03Source(root=""))["train"] == (7368, 767)


def test_cuhk03_is_read_from_inside_its_file(tmp_path: Path, write: Write) -> None:
    config(tmp_path, "detected")
    mat = write(tmp_path / "cuhk03_release" / "cuhk-03.mat")
    source = CUHK03Source(root=str(tmp_path), boxes="detected")
    found = sources.read(source)
    assert found.warnings == []
    assert Counter(row["split"] for row in found.rows) == {"train": 4, "query": 3, "gallery": 4}
    assert mat in sources.files(source)
    for row in found.rows:
        name = row["locator"].removeprefix("cuhk03:detected/").partition(":")[0]
        pair, person, _, column = map(int, name.split("_"))
        loaded = images.decode(loading.load(row["locator"])["image"])
        np.testing.assert_array_equal(loaded, picture(pair, person, column + 100))


def test_an_image_of_cuhk03_has_one_id_extracted_or_not(tmp_path: Path, write: Write) -> None:
    config(tmp_path / "a")
    write(tmp_path / "a" / "cuhk03_release" / "cuhk-03.mat")
    extracted(tmp_path / "b")
    inside, outside = (
        planning.plan([CUHK03Source(root=str(tmp_path / name))]).drop_columns(["locator"])
        for name in ("a", "b")
    )
    assert inside.equals(outside)


def test_classic_splits_of_cuhk03_search_one_view_in_the_other(
    tmp_path: Path, write: Write
) -> None:
    mat = write(tmp_path / "cuhk03_release" / "cuhk-03.mat")
    found = sources.read(CUHK03Source(root=str(tmp_path), protocol="classic", split=1))
    assert identities(found, "query") == identities(found, "gallery") == {"1_002", "2_002"}
    assert identities(found, "train") == {"1_001", "1_003", "2_001"}
    assert {row["camera"] for row in found.rows if row["split"] == "query"} == {"1"}
    assert {row["camera"] for row in found.rows if row["split"] == "gallery"} == {"2"}
    direct = CUHK03Source(root=str(mat.parent), protocol="classic")
    assert identities(sources.read(direct), "query") == {"1_001", "2_001"}
    assert official(direct) == {}
    refuses("split 2 is not in .*; it has 0 to 1", direct.model_copy(update={"split": 2}))


def test_the_images_of_a_classic_split_may_be_extracted(tmp_path: Path, write: Write) -> None:
    mat = write(extracted(tmp_path) / "cuhk03_release" / "cuhk-03.mat")
    source = CUHK03Source(root=str(tmp_path), protocol="classic")
    found = sources.read(source)
    assert by_name(found)["1_001_1_01.png"]["locator"].startswith(str(tmp_path))
    assert mat in sources.files(source)


def test_a_damaged_cuhk03_file_is_one_sentence(tmp_path: Path, write: Write) -> None:
    config(tmp_path)
    mat = write(tmp_path / "cuhk-03.mat")
    where = cuhk03_mat.locator(mat, "labeled", "9_001_1_01")
    assert "is not a readable cuhk-03.mat" in loading.load(where)["drop_reason"]
    other = tmp_path / "other" / "cuhk-03.mat"
    config(other.parent)
    other.write_bytes(b"MATLAB 5.0")
    refuses("other/cuhk-03.mat' is not a readable", CUHK03Source(root=str(other.parent)))


def test_without_h5py_only_extracted_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    touch(extracted(tmp_path), "cuhk03_release/cuhk-03.mat")
    assert sources.read(CUHK03Source(root=str(tmp_path))).rows
    refuses(
        "cuhk-03.mat' takes h5py; pip install h5py",
        CUHK03Source(root=str(tmp_path), protocol="classic"),
    )


def test_the_split_of_cuhk03_is_held_against_the_images(tmp_path: Path) -> None:
    touch(extracted(tmp_path), "images_labeled/9_001_1_01.png", "images_labeled/readme.png")
    (tmp_path / "images_labeled" / "1_001_1_01.png").unlink()
    strange, absent, idle = sources.read(CUHK03Source(root=str(tmp_path))).warnings
    assert "no name like 1_001_1_01.png, e.g. 'readme.png'" in strange
    assert "in the split but not on the disk, e.g. '1_001_1_01'" in absent
    assert "in no split, e.g. '9_001_1_01'" in idle


def test_a_wrong_file_of_the_new_protocol_is_one_sentence(tmp_path: Path) -> None:
    source = CUHK03Source(root=str(extracted(tmp_path)))
    config(tmp_path, filelist=cell([f"{name}.png" for name in NAMES[:-1]]))
    refuses("has 11, but filelist has 10 names", source)
    config(tmp_path, query_idx=np.array([[1, 5]]))
    refuses("puts '1_001_1_01' in train and in query", source)
    config(tmp_path, train_idx=None)
    refuses(r"has no \['train_idx'\]; is it the file of the new protocol", source)
    config(tmp_path).write_bytes(b"no mat file" * 20)
    refuses("config_labeled.mat' is not a readable .mat file", source)
    detected = CUHK03Source(root=str(tmp_path), boxes="detected")
    refuses(r"lacks \['cuhk03_new_protocol_config_detected.mat'\]", detected)
    config(tmp_path, "detected")
    refuses("neither cuhk03_release/cuhk-03.mat nor images in images_labeled or", detected)


def test_the_new_protocol_of_cuhk03_has_one_split() -> None:
    with pytest.raises(ValidationError, match="split 3 has no effect: the new protocol"):
        CUHK03Source(root="", split=3)
    with pytest.raises(ValidationError, match="less than or equal to 19"):
        CUHK03Source(root="", protocol="classic", split=20)


# Two cameras


def viper(root: Path, people: int = 12) -> Path:
    """Numbers with gaps, and other angles on the other camera."""
    for person in range(0, 3 * people, 3):
        touch(root, f"cam_a/{person:03d}_45.bmp", f"cam_b/{person:03d}_{45 * (person % 5)}.bmp")
    return root


def prid2011(root: Path) -> Path:
    """Six shared people, and beyond number 200 others of the same numbers."""
    for number in (1, 2, 3, 4, 199, 200, 201, 202):
        touch(root, *(f"single_shot/{c}/person_{number:04d}.png" for c in ("cam_a", "cam_b")))
    touch(root, "single_shot/cam_b/person_0749.png", "multi_shot/cam_b/person_0001/0001.png")
    return touch(root, "multi_shot/cam_a/person_0001/0001.png")


def test_viper_is_halved_by_people(tmp_path: Path) -> None:
    found = sources.read(VIPeRSource(root=str(viper(tmp_path / "viper" / "VIPeR"))))
    assert Counter(row["split"] for row in found.rows) == {"train": 12, "query": 6, "gallery": 6}
    assert identities(found, "query") == identities(found, "gallery")
    assert not identities(found, "query") & identities(found, "train")
    assert {row["camera"] for row in found.rows if row["split"] == "query"} == {"a"}
    row = by_name(found)["003_135.bmp"]
    assert (row["identity"], row["camera"], row["view"]) == ("viper:003", "b", "135")
    assert found.warnings == []


def test_the_draw_of_viper_depends_on_its_seed_alone(tmp_path: Path) -> None:
    viper(tmp_path / "a")
    viper(tmp_path / "b")

    def train(name: str, seed: int) -> set[str]:
        source = VIPeRSource(root=str(tmp_path / name), split_seed=seed)
        return identities(sources.read(source), "train")

    assert train("a", 0) == train("b", 0)
    assert len({frozenset(train("a", seed)) for seed in range(5)}) > 1


def test_viper_is_searched_in_either_direction(tmp_path: Path) -> None:
    viper(tmp_path)
    there, back = (
        sources.read(VIPeRSource(root=str(tmp_path), query_camera=camera))
        for camera in get_args(VIPeRSource.model_fields["query_camera"].annotation)
    )
    assert identities(there, "query") == identities(back, "query")
    assert {row["camera"] for row in back.rows if row["split"] == "query"} == {"b"}


def test_people_of_viper_are_matched_by_name_not_by_position(tmp_path: Path) -> None:
    viper(tmp_path)
    next((tmp_path / "cam_a").glob("006_*")).unlink()
    next((tmp_path / "cam_b").glob("030_*")).unlink()
    touch(tmp_path, "cam_b/face.bmp")
    found = sources.read(VIPeRSource(root=str(tmp_path)))
    assert len(found.rows) == 20
    for row in found.rows:
        assert row["identity"].endswith(Path(row["locator"]).name.partition("_")[0])
    strange, alone = found.warnings
    assert "no name like 000_45.bmp, e.g. 'face.bmp'" in strange
    assert alone.startswith("2 images")
    assert "that the other camera did not see, e.g. '030_45.bmp'" in alone


def test_too_few_people_cannot_be_halved(tmp_path: Path) -> None:
    viper(tmp_path, people=3)
    refuses("has 3 people on both cameras; it takes at least 4", VIPeRSource(root=str(tmp_path)))
    refuses(r"lacks \['cam_b'\]", VIPeRSource(root=str(touch(tmp_path / "x", "cam_a/1_0.bmp"))))
    refuses("no image with a name like 000_45.bmp",
            VIPeRSource(root=str(prid2011(tmp_path / "y") / "single_shot")))  # fmt: skip


@pytest.mark.parametrize("nested", ["", "prid_2011", "prid2011/prid_2011"])
def test_prid2011_has_people_of_the_second_camera_as_distractors(
    tmp_path: Path, nested: str
) -> None:
    prid2011(tmp_path / nested)
    found = sources.read(PRID2011Source(root=str(tmp_path)))
    normal = [row for row in found.rows if row["identity"] is not None]
    assert Counter(row["split"] for row in normal) == {"train": 6, "query": 3, "gallery": 3}
    assert {row["camera"] for row in normal if row["split"] == "query"} == {"a"}
    others = [row for row in found.rows if row.get("role") == "distractor"]
    assert len(normal) + len(others) == len(found.rows)
    assert [Path(row["locator"]).name for row in others] == [
        "person_0201.png",
        "person_0202.png",
        "person_0749.png",
    ]
    assert {(row["identity"], row["camera"], row["split"]) for row in others} == {
        (None, "b", "gallery")
    }
    (alone,) = found.warnings
    assert alone.startswith("2 images")
    assert "e.g. 'person_0201.png'" in alone


def test_prid2011_is_found_from_single_shot(tmp_path: Path) -> None:
    whole = sources.read(PRID2011Source(root=str(prid2011(tmp_path))))
    inside = PRID2011Source(root=str(tmp_path / "single_shot"))
    assert sources.read(inside).rows == whole.rows
    draws = [sources.read(PRID2011Source(root=str(tmp_path), split_seed=seed)) for seed in range(5)]
    seeds = {frozenset(identities(draw, "train")) for draw in draws}
    assert len(seeds) > 1
    assert {len(seed) for seed in seeds} == {3}


# All of them

TREES: dict[str, Callable[[Path], Path]] = {
    "market1501": market,
    "dukemtmc": duke,
    "msmt17": msmt17,
    "cuhk03": extracted,
    "cuhk03_np": cuhk03_np,
    "viper": viper,
    "prid2011": prid2011,
}


@pytest.mark.parametrize("reader", PERSON)
def test_a_set_is_recognised_by_its_own_layout_only(tmp_path: Path, reader: str) -> None:
    TREES[reader](tmp_path / "inside")
    found = {name: READERS[name].recognise(tmp_path) for name in PERSON}
    assert [name for name, source in found.items() if source is not None] == [reader]
    rows = planning.plan([found[reader]])
    assert rows.num_rows > 4
    # Fingerprints name files relative to the root.
    assert all(file.relative_to(tmp_path) for file in sources.files(found[reader]))
    assert all(READERS[name].recognise(tmp_path / "none") is None for name in PERSON)


def test_the_kind_of_boxes_that_is_there_is_recognised(tmp_path: Path) -> None:
    cuhk03_np(tmp_path / "np", "detected")
    assert READERS["cuhk03_np"].recognise(tmp_path / "np").boxes == "detected"
    extracted(tmp_path / "raw", "detected")
    assert READERS["cuhk03"].recognise(tmp_path / "raw").boxes == "detected"
    touch(tmp_path / "mat", "cuhk03_release/cuhk-03.mat")
    assert READERS["cuhk03"].recognise(tmp_path / "mat").protocol == "classic"
