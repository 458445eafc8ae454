"""Folders as people have them: what looks like input is read, or else counted and named."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ray_reid import cli
from ray_reid.datasets import depth, doctor, ingest, planning, reading, rules, sources, splits
from ray_reid.datasets.readers.folder import FolderSource
from ray_reid.datasets.reading import ReaderSource
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.training import validation

NAME = "{i:03d}_cam{c}_{n}.jpg"


def crops(
    root: Path, name: str = NAME, identities: Iterable[int] = range(1, 9), cameras: str = "12"
) -> Path:
    """Two small pictures of each identity by each camera."""
    for i in identities:
        for c in cameras:
            for n in (1, 2):
                file = root / name.format(i=i, c=c, n=n)
                file.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng((i, int(c), n)).integers(0, 255, (12, 8, 3))
                Image.fromarray(noise.astype(np.uint8)).save(file)
    return root


def told(source: ReaderSource) -> dict[str, list[str]]:
    """What ingest and doctor say of a source, which must be the same."""
    plan = planning.plan([source])
    said = {"ingest": planning.warnings(plan)}
    diagnosis = doctor.examine(source, look=False)
    said["doctor"] = [f.text for f in diagnosis.findings if f.level == "warning"]
    return said


def sides(rows: Sequence[reading.Row]) -> dict[str, str]:
    return {row["identity"].partition(":")[2]: row["split"] == "train" for row in rows}


def test_pictures_of_any_usual_suffix_are_read(tmp_path: Path) -> None:
    crops(tmp_path)
    files = sorted(tmp_path.iterdir())
    for file, suffix in zip(files, (".jfif", ".TIF", ".tiff", ".jpe", ".JPG") * 9, strict=False):
        kind = "TIFF" if "t" in suffix.lower() else "JPEG"
        picture = Image.open(file)
        picture.load()
        file.unlink()
        picture.save(file.with_suffix(suffix), kind)
    found = sources.read(FolderSource(root=str(tmp_path)))
    assert len(found.rows) == 32
    assert found.warnings == []
    assert "- all 32 images decode" in doctor.page(tmp_path, doctor.examine(found_source(tmp_path)))


def found_source(root: Path) -> ReaderSource:
    (source,) = sources.recognise(root)
    return source


def test_what_cannot_be_read_is_counted_and_named(tmp_path: Path) -> None:
    root = crops(tmp_path / "crops")
    picture = Image.open(root / "001_cam1_1.jpg")
    picture.save(root / "001_cam1_9.gif")
    (root / "001_cam2_9.heic").write_bytes(b"\0\0\0\x18ftypheic")
    picture.save(root / "001_cam1_8", "PNG")
    (root / "readme.txt").write_text("BM is how a BMP file begins, and this text")
    (root / ".hidden.gif").touch()
    (root / "gone").symlink_to(tmp_path / "nowhere")
    crops(root / "more", identities=[9])
    (root / "other").symlink_to(root / "more")
    said = told(FolderSource(root=str(root)))
    assert said["ingest"] == said["doctor"]
    formats, broken, again = said["ingest"]
    assert formats.startswith(
        f"3 files of {str(root)!r} are not read (1 no suffix, 1 .gif, 1 .heic"
    )
    assert "e.g. '001_cam1_8'; suffixes that are read: .bmp .dib .jfif .jpe .jpeg .jpg" in formats
    assert broken.startswith("1 links")
    assert broken.endswith("lead nowhere, e.g. 'gone'")
    assert again.startswith("1 links")
    assert again.endswith("not read again, e.g. 'other'")
    only = tmp_path / "only"
    only.mkdir()
    picture.save(only / "1.gif")
    with pytest.raises(ValueError, match=r"holds no image; 1 files of .* \(1 \.gif\)"):
        sources.read(FolderSource(root=str(only)))


def test_unread_files_in_the_folders_of_a_layout_are_named_and_those_beside_are_not(
    tmp_path: Path,
) -> None:
    name = "{i:04d}_c{c}s1_{n:06d}_00.jpg"
    crops(tmp_path / "bounding_box_train", name, range(1, 4))
    crops(tmp_path / "query", name, [7, 8])
    crops(tmp_path / "bounding_box_test", name, [7, 8])
    (tmp_path / "bounding_box_test" / "0007_c3s1_000001_00.heic").touch()
    (tmp_path / "query" / "0008_c3s1_000001_00.heic").touch()
    (tmp_path / "Market.zip").touch()
    # One sentence, however many folders there are.
    (said,) = told(found_source(tmp_path))["ingest"]
    assert said.startswith(f"2 files of {str(tmp_path)!r} are not read (2 .heic), e.g. 'boun")


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "Validation"), ("a/train", "a/test")],
)
def test_the_split_of_folders_is_taken_whatever_its_case_or_usual_name(
    tmp_path: Path, train: str, test: str
) -> None:
    crops(tmp_path / train, identities=range(1, 6))
    crops(tmp_path / test, identities=range(6, 9))
    wanted = {f"{i:03d}": i < 6 for i in range(1, 9)}
    assert sides(sources.read(FolderSource(root=str(tmp_path))).rows) == wanted
    crops(tmp_path / "tree" / train, "{i:03d}/{c}_{n}.jpg", identities=range(1, 6))
    crops(tmp_path / "tree" / test, "{i:03d}/{c}_{n}.jpg", identities=range(6, 9))
    tree = found_source(tmp_path / "tree")
    assert tree.reader == "imagefolder"
    assert sides(sources.read(tree).rows) == wanted


def test_query_and_gallery_within_the_test_folder_are_taken(tmp_path: Path) -> None:
    crops(tmp_path / "a" / "train", identities=range(1, 4))
    # Of one image by each camera, a draw would make the first camera the query.
    for camera, side in (("1", "gallery"), ("2", "query")):
        crops(tmp_path / "a" / "test" / side, identities=range(4, 7), cameras=camera)
    rows = sources.read(FolderSource(root=str(tmp_path / "a"))).rows
    told = Counter((row["split"], row["path"].rpartition("/")[0]) for row in rows)
    sides = {("train", "train"): 12, ("gallery", "test/gallery"): 6, ("query", "test/query"): 6}
    assert told == sides
    for number, split in enumerate(("train", "query", "gallery")):
        crops(tmp_path / "b" / "test" / split, identities=range(3 * number, 3 * number + 3))
    with pytest.raises(ValueError, match="does not say which are for training"):
        sources.read(FolderSource(root=str(tmp_path / "b")))


def test_probe_and_gallery_are_query_and_gallery(tmp_path: Path) -> None:
    crops(tmp_path / "Training", identities=range(1, 4))
    crops(tmp_path / "Probe", identities=[4, 5], cameras="1")
    crops(tmp_path / "Gallery", identities=[4, 5], cameras="2")
    found = sources.read(FolderSource(root=str(tmp_path)))
    assert Counter(row["split"] for row in found.rows) == {"train": 12, "query": 4, "gallery": 4}


@pytest.mark.parametrize("names", [("Train", "train"), ("training", "train"), ("test", "Testing")])
def test_two_folders_for_one_split_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for place, name in enumerate(names):
        crops(tmp_path / name, identities=[place + 1])
    crops(tmp_path / "gallery", identities=[8])
    with pytest.raises(ValueError, match=r"beside each other both say t\w+; rename or unite"):
        sources.read(FolderSource(root=str(tmp_path)))


@pytest.mark.parametrize(
    "names", [("image_train", "image_test"), ("crops-train-1", "crops-val"), ("Train", "held out")]
)
def test_folders_that_hint_at_a_split_are_refused_and_no_other_is_drawn(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for place, name in enumerate(names):
        crops(tmp_path / name, identities=range(1 + 4 * place, 5 + 4 * place))
    with pytest.raises(ValueError, match="does not say which are for training; name the sub-fold"):
        sources.read(FolderSource(root=str(tmp_path)))


def test_a_further_folder_of_an_imagefolder_is_named(tmp_path: Path) -> None:
    tree = "{i:03d}/{c}_{n}.jpg"
    for folder, identities in (("train", [1, 2]), ("test", [3, 4]), ("val", [5]), ("extra", [6])):
        crops(tmp_path / folder, tree, identities)
    (said,) = sources.read(found_source(tmp_path)).warnings
    assert said.startswith(f"8 images of {str(tmp_path)!r} lie outside the folders that are read")
    assert "4 in 'extra', 4 in 'val'" in said


def test_images_beside_the_folders_of_a_layout_are_counted_at_any_depth(tmp_path: Path) -> None:
    name = "{i:04d}_c{c}s1_{n:06d}_00.jpg"
    place = tmp_path / "sets" / "market"
    crops(place / "bounding_box_train", name, range(1, 4))
    crops(place / "query", name, [7, 8])
    crops(place / "bounding_box_test", name, [7, 8])
    # Known to be there, and for another search.
    crops(place / "gt_bbox", name, [7, 8])
    assert told(found_source(tmp_path))["ingest"] == []
    crops(place / "more" / "day", identities=[9])
    crops(tmp_path / "sets" / "other", identities=[9])
    crops(tmp_path, identities=[9])
    said = told(found_source(tmp_path))
    assert said["ingest"] == [text for text in said["doctor"] if "outside" in text]
    named = "(4 in '.', 4 in 'sets/market/more', 4 in 'sets/other'); they are left out"
    assert said["ingest"][0].startswith("12 images of")
    assert said["ingest"][0].endswith(named)


def test_queries_of_an_identity_with_many_images_are_chosen_in_no_time(tmp_path: Path) -> None:
    rows: list[reading.Row] = [
        {"observation_id": str(n), "identity": "s:1", "camera": str(n % 300), "split": "test"}
        for n in range(6000)
    ]
    started = time.monotonic()
    assert splits.choose_queries(rows, tmp_path, seed=0) == []
    assert time.monotonic() - started < 5
    asked = [row["camera"] for row in rows if row["split"] == "query"]
    assert sorted(asked) == sorted(map(str, range(300)))


def test_an_option_without_effect_is_refused(tmp_path: Path) -> None:
    crops(tmp_path / "train", identities=range(1, 4))
    crops(tmp_path / "test", identities=range(4, 7))
    for option in ({"test_fraction": 0.2}, {"test_identities": 2}):
        with pytest.raises(ValueError, match=r"test_\w+ has no effect: .* already says"):
            sources.read(FolderSource(root=str(tmp_path), **option))


def test_exactly_as_many_identities_are_tested_as_are_asked_for(tmp_path: Path) -> None:
    crops(tmp_path)
    for number in (2, 5, 6):
        found = sources.read(FolderSource(root=str(tmp_path), test_identities=number))
        assert list(sides(found.rows).values()).count(False) == number
    with pytest.raises(ValueError, match="test_identities is 7, but must be from 2 to 6"):
        sources.read(FolderSource(root=str(tmp_path), test_identities=7))
    with pytest.raises(ValueError, match=r"test_identities 3 and test_fraction .* both"):
        FolderSource(root=str(tmp_path), test_identities=3, test_fraction=0.5)


@pytest.mark.parametrize(
    ("name", "identity", "cameras"),
    [
        (NAME, "001", {"1", "2"}),
        ("{i:04d}_c{c}_{n}.jpg", "0001", {"1", "2"}),
        ("{i:04d}/{c}_{n}.jpg", "0001", {None}),
        ("{i:04d}/cam{c}_{n}.jpg", "0001", {"1", "2"}),
        ("cam{c}/{i:04d}/{n:04d}.jpg", "0001", {"1", "2"}),
        ("Camera_{c}/{i:04d}/{n:04d}.jpg", "0001", {"1", "2"}),
        ("all/{i:04d}/c{c}/{n:04d}.jpg", "0001", {"1", "2"}),
    ],
)
def test_names_and_folders_of_usual_forms_are_recognised(
    tmp_path: Path, name: str, identity: str, cameras: set[str | None]
) -> None:
    crops(tmp_path, name)
    found = sources.read(found_source(tmp_path))
    assert len(found.rows) == 32
    assert f"{tmp_path.name}:{identity}" in {row["identity"] for row in found.rows}
    assert {row["camera"] for row in found.rows} == cameras


def test_a_large_folder_is_recognised_without_asking_each_file_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(400):
        (tmp_path / f"{number // 4:04d}_cam{number % 4}_{number}.jpg").touch()
    asked = []
    stat = os.stat

    def counted(path: Any, **options: Any) -> os.stat_result:
        asked.append(path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", counted)
    assert [source.reader for source in sources.recognise(tmp_path)] == ["folder"]
    assert len(asked) < 400


@pytest.mark.parametrize("name", ["cam{c}/{i}x{n}.jpg", "{i:03d}x{c}{n}.jpg"])
def test_names_that_tell_no_identity_are_not_guessed_at(tmp_path: Path, name: str) -> None:
    crops(tmp_path, name, cameras="12345")
    assert sources.recognise(tmp_path) == []


def test_a_pattern_with_a_slash_is_searched_in_paths_and_a_misfit_names_one_that_fits(
    tmp_path: Path,
) -> None:
    crops(tmp_path, "cam{c}/{i:04d}/{n:04d}.jpg")
    pattern = r"cam(?P<camera>\d+)/(?P<identity>\d+)/"
    found = sources.read(FolderSource(root=str(tmp_path), pattern=pattern))
    assert {row["camera"] for row in found.rows} == {"1", "2"}
    fitting = r"""e\.g\. '0001\.jpg'; pattern '(.*camera.*)' fits all of them; .* slash"""
    with pytest.raises(ValueError, match=fitting) as refusal:
        sources.read(FolderSource(root=str(tmp_path)))
    named = re.search(fitting, str(refusal.value))
    assert named is not None
    # As it is typed, with single backslashes.
    assert len(sources.read(FolderSource(root=str(tmp_path), pattern=named[1])).rows) == 32


def test_market_names_with_ten_cameras_are_read_whole(tmp_path: Path) -> None:
    for folder, identities in (
        ("bounding_box_train", [1, 2]),
        ("query", [7]),
        ("bounding_box_test", [7]),
    ):
        for identity in identities:
            for camera in (1, 2, 10, 11):
                name = f"{identity:04d}_c{camera}s12_{camera:06d}_00.jpg"
                file = tmp_path / folder / name
                file.parent.mkdir(exist_ok=True, parents=True)
                file.touch()
    source = found_source(tmp_path)
    assert source.reader == "market1501"
    found = sources.read(source)
    assert len(found.rows) == 16
    assert {row["camera"] for row in found.rows} == {"1", "2", "10", "11"}


def test_the_cameras_of_prid_are_found_without_their_folder(tmp_path: Path) -> None:
    for camera in "ab":
        for person in range(1, 7):
            file = tmp_path / f"cam_{camera}" / f"person_{person:04d}.png"
            file.parent.mkdir(exist_ok=True)
            file.touch()
    source = found_source(tmp_path)
    assert source.reader == "prid2011"
    assert len(sources.read(source).rows) == 12


def test_a_run_recognises_its_folder_as_the_doctor_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(*more: str) -> Any:
        options = cli._parser().parse_args(["run", "baseline", "--run", "r", *more])
        (source,) = cli._recipe(options).ingest.sources
        return source.model_dump()

    tree = crops(tmp_path / "tree", "cam{c}/{i:04d}/{n:04d}.jpg")
    known = found_source(tree)
    assert chosen("--data", str(tree)) == {
        "reader": "folder", "root": str(tree), "pattern": known.model_dump()["pattern"],
    }  # fmt: skip
    assert chosen("--data", str(tree), "--reader", "oml")["reader"] == "oml"
    assert chosen("--data", str(tree), "--pattern", "(?P<identity>x)")["reader"] == "folder"
    odd = tmp_path / "odd"
    odd.mkdir()
    Image.open(tree / "cam1/0001/0001.jpg").save(odd / "a.gif")
    for command in (["doctor", str(odd)], ["run", "baseline", "--run", "r", "--data", str(odd)]):
        assert cli.main(command) == cli.MISTAKE
        said = capsys.readouterr().err
        assert "has none of the known layouts; 1 files of" in said
        assert "give --reader, one of ['miniature', 'imagefolder', 'folder'" in said


def findings(source: ReaderSource, level: str, recipe: Recipe | None = None) -> list[str]:
    found = doctor.examine(source, recipe=recipe).findings
    return [finding.text for finding in found if finding.level == level]


@pytest.mark.parametrize(
    ("spread", "levels"), [(lambda g: 51200 + 4 * g, 4), (lambda g: 16 * g, 16), (None, 0)]
)
def test_sixteen_bits_with_little_range_are_named(
    tmp_path: Path, spread: Callable[[Any], Any] | None, levels: int
) -> None:
    for file in crops(tmp_path).iterdir():
        grey = np.asarray(Image.open(file).convert("L")).astype(np.uint16)
        grey[0, :2] = 0, 255
        deep = 257 * grey if spread is None else spread(grey)
        Image.fromarray(deep.astype(np.uint16)).save(file.with_suffix(".png"))
        file.unlink()
    said = [t for t in findings(found_source(tmp_path), "warning") if "16-bit" in t]
    assert len(said) == bool(levels)
    assert not levels or "32 images are 16-bit with little range" in said[0]
    assert not levels or said[0].endswith(f"and so {levels} grey levels")
    some = [row["locator"] for row in sources.read(found_source(tmp_path)).rows]
    sampled = depth.sampled(some)
    assert [text.partition("; ")[0] for text in sampled] == [
        f"of 32 images looked at, {text}" for text in said
    ]


def test_a_test_of_one_identity_is_no_test_for_doctor_and_ingest_alike(tmp_path: Path) -> None:
    crops(tmp_path / "train", identities=range(1, 5))
    crops(tmp_path / "query", identities=[7], cameras="1")
    crops(tmp_path / "gallery", identities=[7], cameras="2")
    said = told(FolderSource(root=str(tmp_path)))
    assert said["ingest"] == said["doctor"]
    one = f"show one identity, '{tmp_path.name}:007': every answer is right, so this is no test"
    assert one in said["ingest"][0]
    crops(tmp_path / "gallery", identities=[8], cameras="2")
    assert told(FolderSource(root=str(tmp_path)))["ingest"] == []


def test_a_query_that_lies_in_the_gallery_as_the_same_file_is_a_problem(tmp_path: Path) -> None:
    crops(tmp_path / "train", "{i}_{c}{n}.jpg", range(1, 5))
    gallery = crops(tmp_path / "gallery", "{i}_{c}{n}.jpg", [7, 8])
    for name in ("7_11.jpg", "8_21.jpg"):
        query = tmp_path / "query" / name.replace("_", "_0")
        query.parent.mkdir(exist_ok=True)
        query.write_bytes((gallery / name).read_bytes())
    without = FolderSource(root=str(tmp_path), pattern=r"(?P<identity>\d+)_")
    (problem,) = findings(without, "problem")
    assert problem.startswith(
        "2 pairs of a query and a gallery image are the same file, and no cam"
    )
    recipe = recipes.load("baseline", None, ["train.sampler.num_identities=2"])
    coarse = "one query of each identity, 2 in all: a single one moves rank-1 by 50.0%"
    assert any(coarse in text for text in findings(without, "warning", recipe))
    both = recipes.load("baseline", None, ["evaluate.both_directions=true"])
    assert not any(coarse in text for text in findings(without, "warning", both))
    removed = FolderSource(root=str(tmp_path), pattern=r"(?P<identity>\d+)_0?(?P<camera>\d{1})\d")
    assert findings(removed, "problem") == []


def test_doctor_and_run_refuse_the_same_batches_before_any_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = crops(tmp_path / "crops")
    run = ["run", "baseline", "--run", str(tmp_path / "run"), "--data", str(root)]
    rule = "train.sampler.num_identities is 16 but only"
    assert cli.main(["doctor", str(root)]) == cli.UNFIT
    page = capsys.readouterr().out
    assert f"x {rule}" in page
    assert cli.main(run) == cli.MISTAKE
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.removeprefix("ray-reid: ") in page
    assert not (tmp_path / "run").exists()
    fits = ["--set", "train.sampler.num_identities=3", "--set", "train.sampler.num_instances=6"]
    assert cli.main(["doctor", str(root), *fits]) == 0
    assert "each of these images 1.5 times on average" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["train.sampler.num_identities=6"], "num_identities is 6 but only 5 identities"),
        (["train.sampler={kind: naive, batch_size: 24}"], "batch_size is 24 but only 20 images"),
        (["train.mixing=balanced", "train.sampler.num_identities=12"], "choose at most 10"),
        (["train.validation=0.5", "train.sampler.num_identities=4"], "but only 2 identities"),
        (["train.real_fraction=0.4", "train.sampler.num_identities=3"], "but only 2 identities"),
        (
            ["train.stages=[{name: II, changes: {sampler.num_identities: 7}}]",
             "train.sampler.num_identities=4"],
            "stage 'II' of train: train.sampler.num_identities is 7",
        ),
    ],
)  # fmt: skip
def test_the_rules_of_a_recipe_are_those_of_its_training(
    tmp_path: Path, changes: list[str], sentence: str
) -> None:
    crops(tmp_path / "train", identities=range(1, 6))
    crops(tmp_path / "test", identities=range(6, 9))
    recipe = recipes.load("baseline", None, changes)
    # Which identities validate is drawn by their names, which have that of their source.
    (problem,) = findings(FolderSource(root=str(tmp_path), name="crops"), "problem", recipe)
    assert sentence in problem
    assert rules.VALIDATION_SEED == validation.SEED


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            ["evaluate.postprocess=[{name: temporal_window, tau: 9}]"],
            "temporal_window needs the column 'time', which is null in every query",
        ),
        (
            ["evaluate.postprocess=[{name: camera_verification, kind: label}]"],
            "camera_verification by label needs the column 'camera'",
        ),
        (["evaluate.protocol=track"], "protocol 'track' needs the column 'track'"),
        (["evaluate.protocol=clothes"], "protocol 'clothes' needs the column 'clothes'"),
        (["train.clothes.weight=1"], "clothes of at least 2 identities"),
        (["train.target=camera"], "none of 20 training images has a camera"),
    ],
)
def test_columns_that_a_later_job_needs_are_asked_for_before_the_first(
    tmp_path: Path, changes: list[str], sentence: str
) -> None:
    name = "{i:03d}_{c}_{n}.jpg"
    crops(tmp_path / "train", name, identities=range(1, 6))
    crops(tmp_path / "test", name, identities=range(6, 9))
    source = {"reader": "folder", "root": str(tmp_path), "pattern": r"(?P<identity>\d+)_"}
    given = [f"ingest.sources=[{json.dumps(source)}]", "train.sampler.num_identities=4"]
    recipe = recipes.load("baseline", None, [*given, *changes])
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ingest.check_rows(recipe)
    (problem,) = findings(sources.resolve(recipe.ingest.sources)[0], "problem", recipe)
    assert sentence in problem


def test_a_recipe_whose_sources_cannot_be_searched_is_refused_before_its_first_job(
    tmp_path: Path,
) -> None:
    crops(tmp_path / "train", identities=range(1, 6))
    crops(tmp_path / "test", identities=range(6, 9))
    rows = sources.read(FolderSource(root=str(tmp_path), name="crops")).rows
    recipe = recipes.load("baseline", None, ["train.sampler.num_identities=4"])
    assert rules.check(rows, recipe) == []
    trained = [row for row in rows if row["split"] == "train"]
    with pytest.raises(ValueError, match="nothing to evaluate: 0 query and 0 gallery images"):
        rules.check(trained, recipe)
    nobody = [row | {"identity": None} if row["split"] == "query" else row for row in rows]
    with pytest.raises(ValueError, match="none of the 6 query images has an identity"):
        rules.check(nobody, recipe)
    other = recipes.load("baseline", None, ["train.sources=[other]"])
    with pytest.raises(ValueError, match=r"train.sources names 'other'.* choose from \['crops'\]"):
        rules.check(rows, other)


def test_a_recipe_that_trains_is_refused_on_a_set_for_tests_alone(tmp_path: Path) -> None:
    source = FolderSource(root=str(crops(tmp_path / "query").parent), name="crops")
    crops(tmp_path / "gallery", name="{i:03d}_cam{c}_{n}_again.jpg")
    rows = sources.read(source).rows
    with pytest.raises(ValueError, match=r"none of the 64 images is a train .*ray-reid eval"):
        rules.check(rows, recipes.load("baseline", None, []))
    # Trainings on generated images alone, and packages, need none.
    for changes in (["train.mixing=synthetic"], ["package=runs/other"]):
        assert rules.check(rows, recipes.load("baseline", None, changes)) == []


@pytest.mark.parametrize("recipe", ["baseline", "clip_senet", "dlcr", "vehicle_diff", "vehiclenet"])
def test_the_drawn_data_of_every_recipe_keep_its_rules(recipe: str) -> None:
    assert ingest.check_rows(recipes.load(recipe, "miniature", [])) == []


def test_the_data_of_a_run_are_replaced_only_if_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], publish_job: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root = crops(tmp_path / "crops")
    mine = {"reader": "folder", "root": str(root)}
    known = recipes.load("baseline", None, [f"ingest.sources=[{json.dumps(mine)}]"])
    run = tmp_path / "run"
    publish_job(run, "ingest", recipe=known)
    before = (run / "run.json").read_bytes()
    command = ["run", "baseline", "--run", str(run)]
    assert cli.main(command) == cli.MISTAKE
    said = capsys.readouterr().err
    assert f"was made from folder {str(root)!r}, and this recipe reads miniature, num_train" in said
    assert "give the same data (--data), another --run, or --replace" in said
    monkeypatch.chdir(tmp_path)
    rule = "num_identities is 16 but only"
    more = str(crops(tmp_path / "more", identities=range(9)))
    same = ["--data", "crops"]
    for again in (same, [*same, "--pattern", cli.EXAMPLE], ["--data", more, "--replace"]):
        assert cli.main([*command, *again]) == cli.MISTAKE
        assert rule in capsys.readouterr().err
    assert (run / "run.json").read_bytes() == before


def test_the_path_of_an_image_relative_to_its_root_goes_with_its_row(tmp_path: Path) -> None:
    crops(tmp_path, "cam{c}/{i:04d}/{n:04d}.jpg")
    table = planning.plan([found_source(tmp_path)])
    assert "cam1/0008/0002.jpg" in table["path"].to_pylist()
    assert table["path"].null_count == 0
