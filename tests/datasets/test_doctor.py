"""The doctor on small data sets, each with one illness."""

from pathlib import Path

import numpy as np
import pytest

from ray_reid import cli, images
from ray_reid.datasets import doctor, sources
from ray_reid.datasets.readers.market1501 import Market1501Source


def picture(seed: int, changed: int = 0) -> images.Pixels:
    """Coarse random blocks; `changed` pixels of one corner are other ones."""
    blocks = np.random.default_rng(seed).integers(0, 255, (8, 4, 3), dtype=np.uint8)
    pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)
    pixels[:changed, :changed] //= 2
    return pixels


def market(root: Path, identities: int = 4) -> Path:
    """A sound Market-1501 tree: train identities 2, 4, ..., test identities 3, 5, ..."""
    seed = 0
    for folder, first, cameras in (
        ("bounding_box_train", 2, (1, 2)),
        ("query", 3, (1,)),
        ("bounding_box_test", 3, (2, 3)),
    ):
        for number in range(identities):
            for camera in cameras:
                name = f"{first + 2 * number:04d}_c{camera}s1_{seed:06d}_00.jpg"
                write(root / folder / name, picture(seed))
                seed += 1
    return root


def write(file: Path, pixels: images.Pixels) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(images.encode(pixels, 95))
    return file


def findings(root: Path, level: str, look: bool = True) -> list[str]:
    diagnosis = doctor.examine(Market1501Source(root=str(root)), look)
    return [finding.text for finding in diagnosis.findings if finding.level == level]


def test_a_set_for_tests_alone_is_not_trained_on(tmp_path: Path) -> None:
    root = market(tmp_path)
    for file in (root / "bounding_box_train").iterdir():
        file.unlink()
    source = Market1501Source(root=str(root))
    # A model package can be scored on it.
    assert {row["split"] for row in sources.read(source).rows} == {"query", "gallery"}
    assert not doctor.examine(source).trainable
    assert findings(root, "problem") == ["no train images: there is nothing to train on"]


def test_a_sound_set_may_be_trained_on(tmp_path: Path) -> None:
    root = market(tmp_path)
    (source,) = sources.recognise(root)
    diagnosis = doctor.examine(source)
    assert diagnosis.trainable
    assert diagnosis.counts == {"train": (8, 4, 2), "query": (4, 4, 1), "gallery": (8, 4, 2)}
    page = doctor.page(root, diagnosis)
    assert "reader market1501" in page
    assert "- all 20 images decode" in page
    # It is a small copy of a large set, and says so.
    assert "! train has 8 images of 4 identities, published are 12,936 of 751" in page
    assert page.endswith("training may start: 0 problems, 1 warnings")


def test_what_the_reader_refuses_is_a_problem(tmp_path: Path) -> None:
    root = market(tmp_path)
    write(root / "bounding_box_train" / "0003_c1s1_000000_00.jpg", picture(90))
    (problem,) = findings(root, "problem", look=False)
    assert "are in both train and test, e.g. '0003'" in problem


def test_corrupt_files_are_counted_and_named(tmp_path: Path) -> None:
    root = market(tmp_path, identities=12)
    (root / "query" / "0003_c1s1_000024_00.jpg").write_bytes(b"\xff\xd8 nothing")
    (warning,) = [text for text in findings(root, "warning") if "cannot be used" in text]
    assert "1 of 60 images cannot be used, the first is" in warning
    assert "0003_c1s1_000024_00.jpg: corrupt image: not a readable image" in warning
    for file in sorted((root / "bounding_box_train").iterdir())[:6]:
        file.write_bytes(b"")
    (problem,) = findings(root, "problem")
    assert problem.startswith("7 of 60 images cannot be used")


def test_one_file_on_both_sides_of_the_test_is_a_leak(tmp_path: Path) -> None:
    root = market(tmp_path)
    train = sorted((root / "bounding_box_train").iterdir())[0]
    (root / "query" / "0003_c1s1_000099_00.jpg").write_bytes(train.read_bytes())
    (problem,) = findings(root, "problem")
    assert problem.startswith("1 pairs of a train and a test image are the same file, e.g. ")
    assert train.name in problem


def test_near_duplicates_are_found_across_identities_and_splits(tmp_path: Path) -> None:
    root = market(tmp_path)
    write(root / "query" / "0003_c1s1_000099_00.jpg", picture(0, changed=2))
    write(root / "bounding_box_test" / "0005_c3s1_000098_00.jpg", picture(8, changed=2))
    found = findings(root, "warning")
    assert any("1 pairs of a train and a test image are nearly the same" in text for text in found)
    assert any("1 pairs under two identities are nearly the same" in text for text in found)
    assert not findings(root, "problem")


def test_near_pairs_match_a_loop() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 60, dtype=np.uint64)
    flips = [np.uint64(sum(1 << int(b) for b in rng.choice(64, n, False))) for n in range(7)]
    hashes = np.concatenate([base, base[:7] ^ np.array(flips, dtype=np.uint64)])
    expected = [
        (a, b)
        for a in range(len(hashes))
        for b in range(a + 1, len(hashes))
        if int(hashes[a] ^ hashes[b]).bit_count() <= doctor.NEAR_BITS
    ]
    assert doctor.near_pairs(hashes) == expected
    assert len(expected) == 4


def test_a_flat_picture_is_nobodys_twin() -> None:
    hashes = np.zeros(doctor.CROWD + 1, dtype=np.uint64)
    assert doctor.near_pairs(hashes) == []


def test_the_command_says_so_with_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = market(tmp_path / "market")
    rule = ["--set", "train.sampler.num_identities=4"]
    assert cli.main(["doctor", str(root), "--quick", *rule]) == 0
    assert "training may start" in capsys.readouterr().out
    (root / "bounding_box_train" / "0003_c1s1_000000_00.jpg").touch()
    assert cli.main(["doctor", str(root), "--quick", *rule]) == cli.UNFIT
    assert "do not train on this yet: 1 problems" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    assert cli.main(["doctor", str(tmp_path / "other")]) == cli.MISTAKE
    assert "has none of the known layouts; give --reader" in capsys.readouterr().err
    assert cli.main(["doctor", str(tmp_path / "none")]) == cli.MISTAKE


def test_a_folder_of_ones_own_is_read_with_its_pattern(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        for camera in (1, 2):
            write(tmp_path / f"v{number}-{camera}.jpg", picture(10 * number + camera))
    pattern = r"pattern=v(?P<identity>\d+)-(?P<camera>\d+)"
    rule = ["--set", "train.sampler.num_identities=2"]
    assert cli.main(["doctor", str(tmp_path), "--set", pattern, *rule]) == 0
    assert "reader folder" in capsys.readouterr().out
    assert cli.main(["doctor", str(tmp_path), "--reader", "market", "--set", "x=1"]) == cli.MISTAKE
    assert sources.single(tmp_path, "folder", [pattern]).reader == "folder"
