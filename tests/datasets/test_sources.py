"""Sources of a recipe: what their readers refuse, in one sentence and before any job runs."""

from pathlib import Path
from typing import Any

import pytest

from ray_reid import cli
from ray_reid.datasets import ingest, sources
from ray_reid.datasets.readers.cuhk03 import CUHK03Source
from ray_reid.datasets.readers.folder import FolderSource
from ray_reid.datasets.readers.miniature import MiniatureSource
from ray_reid.recipe import recipes


def resolved(*written: dict[str, Any]) -> tuple[sources.ReaderSource, ...]:
    made = recipes.validate({"name": "x", "ingest": {"sources": list(written)}})
    return sources.resolve(made.ingest.sources)


def test_a_source_becomes_the_model_of_its_reader_with_its_defaults() -> None:
    drawn = {"reader": "miniature", "image_size": [96, 48]}
    own = {"reader": "folder", "root": "x", "query_cameras": ["1"]}
    assert resolved(drawn, own) == (
        MiniatureSource(image_size=(96, 48)),
        FolderSource(root="x", query_cameras=("1",)),
    )
    assert resolved() == ()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("roof=1", r"^unknown recipe key '.*sources.0.miniature.roof'; choose .*'num_train'"),
        ("seed=-1", r"^recipe key 'ingest.sources.0.miniature.seed' is -1: .*or equal to 0$"),
        ("images_per_camera=1", "is 1: .*greater than or equal to 2"),
        ("cameras_per_identity=1", "is 1: .*greater than or equal to 2"),
        ("image_size=[64, 7]", "image_size.1' is 7: .*greater than or equal to 8"),
        (
            "reader=foldr",
            r"^recipe key 'ingest.sources.0.reader' is 'foldr': unknown reader; choose from "
            r"\['miniature', 'imagefolder', 'folder', .*'market1501'",
        ),
    ],
)
def test_a_wrong_option_is_one_sentence(override: str, sentence: str) -> None:
    made = recipes.load("baseline", "miniature", [f"ingest.sources.0.{override}"])
    with pytest.raises(ValueError, match=sentence) as caught:
        ingest.check(made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"reader": "folder"}, r"sources.1.folder.root' is {'reader': 'folder'}: Field required"),
        (
            {"reader": "folder", "root": "x", "test_fraction": 2},
            r"'ingest.sources.1.folder.test_fraction' is 2: Input should be less than 1$",
        ),
        (
            {"reader": "folder", "root": "x", "pattern": "(?P<camera>.)"},
            r"^recipe key 'ingest.sources.1.folder.pattern': pattern '\(\?P<camera>.\)' has groups",
        ),
        (
            {"reader": "cuhk03", "root": "x", "split": 3},
            "^recipe key 'ingest.sources.1.cuhk03': split 3 has no effect",
        ),
    ],
)
def test_the_key_says_which_source_is_wrong(source: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        resolved({"reader": "miniature"}, source)


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(?P<identity>", "is not a regular expression"),
        (r"(?P<camera>\d)", "it needs"),
        (r"(?P<identity>.)(?P<kamera>.)", "kamera"),
    ],
)
def test_a_wrong_pattern_fails_before_anything_is_read(pattern: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FolderSource(root="x", pattern=pattern)


def test_a_number_that_names_a_folder_is_text() -> None:
    recipe = recipes.load("baseline", None, ["ingest.sources=[{reader: folder, root: 2024}]"])
    assert sources.resolve(recipe.ingest.sources) == (FolderSource(root="2024"),)


def test_a_home_that_nobody_knows_is_a_sentence_where_the_data_of_a_run_are_compared() -> None:
    written = {"reader": "folder", "root": "~no-such-user/crops"}
    made = recipes.validate({"name": "x", "ingest": {"sources": [written]}})
    with pytest.raises(ValueError, match="the home folder in '~no-such-user/crops' is unknown"):
        sources.told(made.ingest.sources)


def test_a_single_source_takes_options_as_the_command_line_has_them() -> None:
    found = sources.single(Path("x"), "cuhk03", ["protocol=classic", "split=3"])
    assert found == CUHK03Source(root="x", protocol="classic", split=3)
    with pytest.raises(ValueError, match=r"--set 'split' must be option=value"):
        sources.single(Path("x"), "cuhk03", ["split"])
    with pytest.raises(ValueError, match=r"unknown recipe key 'ingest.sources.0.cuhk03.splat'"):
        sources.single(Path("x"), "cuhk03", ["splat=1"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "ingest.sources.0.roof=1"], "unknown recipe key 'ingest.sources.0.miniature."),
        (["--set", "ingest.sources=[]"], "the profile 'miniature' of the recipe 'baseline' has no"),
        (["--profile", "photographs"], "the profile 'photographs' of the recipe 'baseline' has no"),
    ],
)
def test_a_run_is_refused_before_any_job_and_leaves_nothing(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.main(["run", "baseline", "--run", str(run), *options]) == cli.MISTAKE
    error = capsys.readouterr().err
    assert error.startswith(f"ray-reid: {sentence}")
    assert error.count("\n") == 1
    assert not run.exists()
