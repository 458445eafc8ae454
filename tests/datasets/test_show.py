"""`ray-reid show` on made-up run directories: the story of one image, and the image itself."""

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ray_reid import cli, images, schema, storage
from ray_reid.datasets import show


def picture(colour, size=(32, 24), form="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", size[::-1], colour).save(buffer, form)
    return buffer.getvalue()


REAL = "aaaaaa" + 26 * "1"
KIN = "aaaaaa" + 26 * "2"
MADE = "bbbbbb" + 26 * "3"
LOST = "cccccc" + 26 * "4"


@pytest.fixture
def run(tmp_path, publish_job):
    """A run with two real images, one made from the first, and one that a filter dropped."""
    shared = {
        schema.SOURCE: "street",
        schema.LICENCE: "CC0-1.0",
        schema.SPLIT: "train",
        schema.IDENTITY: "street:7",
    }
    real = [
        {
            **shared,
            schema.OBSERVATION_ID: REAL,
            schema.IMAGE: picture("red"),
            schema.CAMERA: "c3",
            schema.PATH: "day/7_c3.jpg",
        },
        {**shared, schema.OBSERVATION_ID: KIN, schema.IMAGE: b"torn"},
    ]
    made = {
        **shared,
        schema.IDENTITY: "vehicle_diff:red_van",
        schema.ORIGIN: "synthetic",
        schema.PROMPT: "a red van\x1b[31m",
        schema.SEED: 12,
        schema.GENERATOR: "sd@12ab adapter@34cd",
        schema.ATTRIBUTES: {"colour": "red", "body_style": "van"},
        schema.SCORES: {"colour": 0.3125, "confidence": 0.9},
    }
    png = picture("blue", form="PNG")
    rows = [
        {**made, schema.OBSERVATION_ID: MADE, schema.IMAGE: png, schema.PARENT: REAL},
        {
            **made,
            schema.OBSERVATION_ID: LOST,
            schema.IMAGE: png,
            schema.PARENT: "dddddd" + 26 * "5",
            schema.DROP_REASON: "colour: seen blue",
        },
    ]
    ingested, generated, adapted = (
        publish_job(tmp_path, job) for job in ("ingest", "generate", "adapt")
    )
    storage.write(ingested / "observations", schema.observations(real))
    storage.write(generated / "observations", schema.observations(rows))
    # A sample of whole images, which no filter has marked.
    bare = [{k: v for k, v in row.items() if k != schema.DROP_REASON} for row in rows]
    storage.write(generated / "adapted", schema.observations(bare))
    captions = pa.table({schema.OBSERVATION_ID: [REAL], "caption": ["a red car"]})
    storage.write(adapted / "captions", captions)
    return tmp_path


def told(story):
    """The values of a story by the name of their line; lines without a name go on the last."""
    values, name = {}, ""
    for line in story.splitlines():
        name = line[: show.INDENT].strip() or name
        values.setdefault(name, []).append(line[show.INDENT :])
    return values


def test_a_generated_image_is_told_with_its_prompt_scores_verdict_and_parent(run):
    story = show.show(run, "BBBBBB").story
    own, parent = story.split("\n\n")
    lines = told(own)
    assert lines["observation"] == [MADE]
    assert lines["table"] == ["generate/observations"]
    assert lines["identity"] == ["vehicle_diff:red_van"]
    assert lines["camera"] == ["none"]
    assert lines["origin"] == ["synthetic, source street"]
    assert lines["licence"] == ["CC0-1.0"]
    assert lines["attributes"] == ["colour      red", "body_style  van"]
    assert lines["scores"] == ["colour      0.3125", "confidence  0.9"]
    assert (lines["seed"], lines["generator"]) == (["12"], ["sd@12ab adapter@34cd"])
    assert lines["verdict"] == ["kept"]
    assert lines["image"][0].startswith("24 x 32 pixels, PNG, ")
    above = told(parent)
    assert above["observation"] == [REAL]
    assert above["table"] == ["ingest/observations"]
    assert above["also in"] == ["adapt/captions: caption a red car"]
    assert above["camera"] == ["c3"]


def test_a_personalised_image_is_told_with_its_token_its_sources_and_the_references(
    run, publish_job
):
    prompts = pa.table({
        schema.IDENTITY: ["street:7"],
        schema.TOKEN: ["zwx"],
        "class_prompt": ["a person"],
        schema.IMAGES: [[REAL, KIN]],
    })  # fmt: skip
    storage.write(publish_job(run, "enhance") / "prompts", prompts)
    made = {
        schema.OBSERVATION_ID: "eeeeee" + 26 * "6",
        schema.IMAGE: picture("green"),
        schema.SOURCE: "street",
        schema.SPLIT: "train",
        schema.IDENTITY: "street:7",
        schema.ORIGIN: "synthetic",
        schema.PARENT: REAL,
        schema.PROMPT: "a zwx person",
        schema.SCORES: {"reid": 0.5},
    }
    facts = {"references": 16, "reference_prompts": 2}
    folder = publish_job(run, "personalise", facts=facts)
    storage.write(folder / "observations", schema.observations([made]))
    lines = told(show.show(run, "eeeeee").story.split("\n\n")[0])
    assert lines["prompt"] == ["a zwx person"]
    assert (lines["token"], lines["without it"]) == (["zwx"], ["a person"])
    assert lines["sources"] == [REAL, KIN]
    assert lines["references"] == ["16 images of 2 prompts, made without the token"]
    assert lines["scores"] == ["reid  0.5"]
    # Of a real image of the same identity, none of it is told.
    assert "token" not in told(show.show(run, REAL).story)


def test_a_dropped_image_says_why_and_a_parent_elsewhere_is_named(run):
    lines = told(show.show(run, LOST).story)
    assert lines["verdict"] == ["dropped: colour: seen blue"]
    assert lines["table"] == ["generate/observations"]
    assert lines["also in"] == ["generate/adapted"]
    assert lines["parent"][-1] == f"dddddd{26 * '5'} is in no table of this run"


def test_words_of_a_prompt_cannot_steer_the_terminal(run):
    story = show.show(run, MADE).story
    assert "\x1b" not in story
    assert r"a red van\x1b[31m" in story


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        ("aaaaaa", f"2 observations begin with 'aaaaaa': {REAL}, {KIN}"),
        ("abcdef", "no observation of .* begins with 'abcdef'"),
        ("aaaaa", "'aaaaa' is not the id of one, or its first 6 or more digits"),
        ("street:7", "'street:7' is not the id of one"),
    ],
)
def test_an_unknown_or_ambiguous_id_is_one_sentence(run, capsys, observation, said):
    with pytest.raises(ValueError, match=said):
        show.show(run, observation)
    assert cli.main(["show", str(run), observation]) == cli.MISTAKE
    assert capsys.readouterr().err.count("\n") == 1
    assert not (run / show.FOLDER).exists()


def test_a_directory_without_tables_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a run directory"):
        show.show(tmp_path, "aaaaaa")


def test_the_command_writes_the_image_as_it_is_stored_and_no_escape_codes(run, capsys, tmp_path):
    assert cli.main(["show", str(run), MADE, "--traceback"]) == 0
    said = capsys.readouterr().out
    file = run / "shown" / f"{MADE}.png"
    assert f"written to   {file}" in said
    assert "\x1b" not in said
    assert file.read_bytes() == picture("blue", form="PNG")
    other = tmp_path / "mine.jpg"
    assert cli.main(["show", str(run), REAL, "--image", str(other)]) == 0
    assert other.read_bytes() == picture("red")


def test_an_image_that_does_not_decode_is_told_all_the_same(run, capsys):
    assert cli.main(["show", str(run), KIN]) == 0
    assert "does not decode, 4 bytes" in capsys.readouterr().out
    assert (run / "shown" / f"{KIN}.bin").read_bytes() == b"torn"


def test_half_blocks_show_the_upper_pixel_in_front_of_the_lower_one():
    pixels = np.array([[[255, 0, 0]], [[0, 0, 255]]], dtype=np.uint8)
    expected = f"\x1b[38;2;255;0;0;48;2;0;0;255m{show.UPPER_HALF}\x1b[0m"
    assert show.half_blocks(pixels) == expected


@pytest.mark.parametrize("size", [(64, 64), (256, 128), (40, 900), (1, 1)])
def test_half_blocks_fit_a_terminal_and_keep_proportions(size):
    drawn = show.half_blocks(np.zeros((*size, 3), np.uint8)).splitlines()
    columns = drawn[0].count(show.UPPER_HALF)
    assert columns <= show.MAX_COLUMNS
    assert len(drawn) <= show.MAX_LINES
    # Two pixels a line; rounding to whole characters moves it by one.
    assert abs(2 * len(drawn) - columns * size[0] / size[1]) <= 2


def test_only_a_terminal_with_colours_gets_blocks(monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert not cli._has_colours()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert cli._has_colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not cli._has_colours()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not cli._has_colours()


def test_showing_needs_neither_ray_nor_torch(run):
    probe = (
        "import sys\n"
        "from ray_reid import cli\n"
        f"code = cli.main(['show', {str(run)!r}, {MADE!r}])\n"
        "sys.exit(' '.join({'torch', 'ray', 'mlflow'} & set(sys.modules)) or code)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_id_is_found_in_any_row_group_of_any_file(tmp_path, publish_job):
    encoded = images.encode(np.zeros((8, 8, 3), np.uint8))
    for half in range(2):
        rows = [
            {
                schema.OBSERVATION_ID: schema.observation_id(half, row),
                schema.IMAGE: encoded,
                schema.SOURCE: f"s{half}-{row}",
                schema.SPLIT: "train",
            }
            for row in range(storage.ROW_GROUP + 5)
        ]
        storage.write(tmp_path / f"half{half}", schema.observations(rows))
    table = publish_job(tmp_path, "ingest") / "observations"
    table.mkdir()
    for half in range(2):
        file = tmp_path / f"half{half}" / "part-0.parquet"
        file.rename(table / f"part-{half}.parquet")
    wanted = schema.observation_id(1, storage.ROW_GROUP + 2)
    assert f"source s1-{storage.ROW_GROUP + 2}" in show.show(tmp_path, wanted).story
