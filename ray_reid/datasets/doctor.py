"""Look at a data set on disk before a GPU does: what it is, what is wrong, whether to train.

Everything a reader refuses, and what no reader sees: files that do not decode, images twice, and
the same picture on both sides of the test or under two identities.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_reid import images, schema
from ray_reid.datasets import depth, loading, reading, rules, sources
from ray_reid.datasets.readers import READERS
from ray_reid.datasets.reading import LOCATOR, ReaderSource, Row
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.bars import bar

Level = Literal["problem", "warning", "fine"]
# Two pictures are near duplicates if their hashes differ in at most this many of 64 bits.
NEAR_BITS = 3
# Pictures that share a quarter of the hash with more than this many others are flat, not alike.
CROWD = 200
# A larger share of images that do not decode stops `ingest` as well.
MAX_CORRUPT = 0.05


@dataclass(frozen=True)
class Finding:
    """One sentence about a data set."""

    level: Level
    text: str
    remedy: str = ""
    """What a person can do about it."""


@dataclass
class Diagnosis:
    """What was found out about a data set."""

    source: ReaderSource | None
    """How it would be read; null if it cannot be."""
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Images, identities and cameras by split; junk left out, all distractors one identity."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def trainable(self) -> bool:
        """Whether training may start."""
        return not any(finding.level == "problem" for finding in self.findings)


@dataclass(frozen=True)
class _Look:
    """What was seen of one image."""

    reason: str | None
    """Why it cannot be used; null if it can."""
    content: bytes = b""
    """Hash of the encoded bytes."""
    picture: int = 0
    """64-bit difference hash of the picture."""
    greys: tuple[int, int] | None = None
    """Lowest and highest value of a picture of 16-bit greys."""


def examine(source: ReaderSource, look: bool = True, recipe: Recipe | None = None) -> Diagnosis:
    """Read a source and judge it by the rules of a recipe; `look` also opens every image."""
    diagnosis = Diagnosis(source)
    say = diagnosis.findings.append
    try:
        read = sources.read(source)
    except ValueError as error:
        say(Finding("problem", str(error)))
        return diagnosis
    diagnosis.counts = _counts(read.rows)
    diagnosis.findings += [Finding("warning", text) for text in read.warnings]
    diagnosis.findings += _official(source, diagnosis.counts)
    diagnosis.findings += _labels(read.rows)
    limit = MAX_CORRUPT
    if recipe is not None:
        diagnosis.findings += _of_recipe(read.rows, recipe)
        limit = recipe.ingest.max_corrupt_fraction
    if look:
        diagnosis.findings += _pictures(read.rows, limit)
    terms = READERS[source.reader].terms
    withdrawn = "withdrawn" in terms
    if terms:
        remedy = "check whether you may still use it" if withdrawn else ""
        say(Finding("warning" if withdrawn else "fine", f"terms: {terms}", remedy))
    return diagnosis


def page(root: Path, diagnosis: Diagnosis) -> str:
    """One page that a person can act on."""
    source = diagnosis.source
    reader = "unknown layout" if source is None else f"reader {sources.described(source)}"
    lines = [f"{root}: {reader}", ""]
    if diagnosis.counts:
        lines.append(f"  {'split':<12}{'images':>10}{'identities':>12}{'cameras':>9}")
        for split, (number, identities, cameras) in diagnosis.counts.items():
            lines.append(f"  {split:<12}{number:>10,}{identities:>12,}{cameras or 'none':>9}")
        lines.append("")
    marks = {"problem": "x", "warning": "!", "fine": "-"}
    for level, mark in marks.items():
        for finding in diagnosis.findings:
            if finding.level == level:
                lines.append(f"  {mark} {finding.text}")
                if finding.remedy:
                    lines.append(f"      -> {finding.remedy}")
    verdict = "training may start" if diagnosis.trainable else "do not train on this yet"
    return "\n".join([*lines, "", f"{verdict}: {_summary(diagnosis.findings)}"])


def _summary(findings: Sequence[Finding]) -> str:
    count = Counter(finding.level for finding in findings)
    return f"{count['problem']} problems, {count['warning']} warnings"


def _counts(rows: Sequence[Row]) -> dict[str, tuple[int, int, int]]:
    counts = {}
    for split in schema.SPLITS:
        own = [r for r in rows if r[schema.SPLIT] == split and r.get(schema.ROLE) != "junk"]
        if own:
            identities = {row[schema.IDENTITY] for row in own}
            if not any(row.get(schema.ROLE) == "distractor" for row in own):
                identities -= {None}
            cameras = {row.get(schema.CAMERA) for row in own} - {None}
            counts[split] = (len(own), len(identities), len(cameras))
    return counts


def _official(
    source: ReaderSource, counts: Mapping[str, tuple[int, int, int]]
) -> Iterator[Finding]:
    published = READERS[source.reader].official(source)
    off = []
    for split, (number, identities) in published.items():
        found = counts.get(split, (0, 0, 0))
        if found[:2] != (number, identities):
            off.append(
                f"{split} has {found[0]:,} images of {found[1]:,} identities, "
                f"published are {number:,} of {identities:,}"
            )
    if off:
        yield Finding(
            "warning", "; ".join(off), "a copy with other counts gives figures of another test"
        )
    elif published:
        yield Finding("fine", "as many images and identities as published")


def _labels(rows: Sequence[Row]) -> Iterator[Finding]:
    tested = [row for row in rows if row[schema.SPLIT] in ("query", "gallery")]
    cameraless = sum(row.get(schema.CAMERA) is None for row in tested)
    if tested and cameraless == len(tested):
        yield Finding("fine", "no cameras: the Market rule removes nothing from a ranking")
    elif cameraless:
        yield Finding(
            "warning",
            f"{cameraless:,} of {len(tested):,} test images have no camera, the others have",
            "they are compared with every other image; leave them out or give them one",
        )
    yield from (Finding("warning", text) for text in reading.one_tested(rows))
    sizes = Counter(row[schema.IDENTITY] for row in rows if row[schema.SPLIT] == "train")
    if not sizes:
        yield Finding(
            "problem",
            "no train images: there is nothing to train on",
            "`ray-reid evaluate` scores a model package on a set for tests alone",
        )
    single = sum(number == 1 for name, number in sizes.items() if name is not None)
    if single:
        yield Finding(
            "warning",
            f"{single:,} of {len(sizes):,} train identities have a single image",
            "P x K batches repeat it; more images of each identity teach more",
        )
    unlabelled = sizes.get(None, 0)
    if unlabelled:
        yield Finding("warning", f"{unlabelled:,} train images have no identity: they are not used")


def _of_recipe(rows: Sequence[Row], recipe: Recipe) -> Iterator[Finding]:
    """Whether a run of the recipe would begin; another source may bring a side that is missing."""
    checks: list[Callable[[Sequence[Row], Recipe], list[str]]] = [rules.check_training]
    if any(row[schema.SPLIT] in ("query", "gallery") for row in rows):
        checks.append(rules.check_test)
    for check in checks:
        try:
            yield from (Finding("warning", text) for text in check(rows, recipe))
        except ValueError as error:
            yield Finding("problem", str(error), "a run refuses it too, before its first job")


def _pictures(rows: Sequence[Row], limit: float) -> Iterator[Finding]:
    with ThreadPoolExecutor() as threads:
        seen = threads.map(_look, (row[LOCATOR] for row in rows))
        looks = list(bar("doctor", "image", len(rows), seen))
    bad = [place for place, look in enumerate(looks) if look.reason is not None]
    if bad:
        first = f"{rows[bad[0]][LOCATOR]}: {looks[bad[0]].reason}"
        yield Finding(
            "problem" if len(bad) > limit * len(rows) else "warning",
            f"{len(bad):,} of {len(rows):,} images cannot be used, the first is {first}",
            "copy them again; `ingest` leaves them out, and stops above "
            f"ingest.max_corrupt_fraction, {limit:.0%}",
        )
    else:
        yield Finding("fine", f"all {len(rows):,} images decode")
    for text in depth.little_range([look.greys for look in looks if look.reason is None]):
        yield Finding("warning", text, depth.REMEDY)
    usable = [place for place, look in enumerate(looks) if look.reason is None]
    yield from _twins(rows, _equal([looks[p].content for p in usable], usable), "the same file")
    hashes = np.array([looks[place].picture for place in usable], dtype=np.uint64)
    near = ((usable[a], usable[b]) for a, b in near_pairs(hashes))
    exact = set(_equal([looks[p].content for p in usable], usable))
    yield from _twins(rows, [pair for pair in near if pair not in exact], "nearly the same picture")


def _equal(keys: Sequence[bytes], places: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of places with equal keys: each with the first of its kind."""
    first: dict[bytes, int] = {}
    pairs = []
    for key, place in zip(keys, places, strict=True):
        if key in first:
            pairs.append((first[key], place))
        first.setdefault(key, place)
    return pairs


def _twins(rows: Sequence[Row], pairs: Sequence[tuple[int, int]], what: str) -> Iterator[Finding]:
    """What pairs of like images mean: a leak into the test, a wrong label, or only a copy."""
    leaks, labels, selves, copies = [], [], [], []
    for one, other in pairs:
        a, b = rows[one], rows[other]
        if (a[schema.SPLIT] == "train") != (b[schema.SPLIT] == "train"):
            leaks.append((a, b))
        elif a[schema.IDENTITY] != b[schema.IDENTITY]:
            labels.append((a, b))
        elif _finds_itself(a, b):
            selves.append((a, b))
        else:
            copies.append((a, b))
    exact = what == "the same file"
    if leaks:
        yield Finding(
            "problem" if exact else "warning",
            f"{len(leaks):,} pairs of a train and a test image are {what}, e.g. {_both(leaks[0])}",
            "the test asks what was trained on; take them out of one side",
        )
    if labels:
        yield Finding(
            "warning",
            f"{len(labels):,} pairs under two identities are {what}, e.g. {_both(labels[0])}",
            "one of the labels is wrong, or both images show nothing",
        )
    if selves:
        yield Finding(
            "problem" if exact else "warning",
            f"{len(selves):,} pairs of a query and a gallery image are {what}, and no camera rule "
            f"takes them out, e.g. {_both(selves[0])}",
            "each finds itself, so figures mean nothing; take them out of one side",
        )
    if copies and exact:
        yield Finding(
            "warning", f"{len(copies):,} images are {what} as another of their identity, e.g. "
            f"{_both(copies[0])}"
        )  # fmt: skip
    elif copies:
        yield Finding("fine", f"{len(copies):,} pairs of one identity are {what}: video frames are")


def _finds_itself(a: Row, b: Row) -> bool:
    """Whether one asks and the other answers: the Market rule removes equal cameras alone."""
    cameras = a.get(schema.CAMERA), b.get(schema.CAMERA)
    sides = {a[schema.SPLIT], b[schema.SPLIT]}
    return sides == {"query", "gallery"} and (None in cameras or cameras[0] != cameras[1])


def _both(pair: tuple[Row, Row]) -> str:
    return " and ".join(str(row[LOCATOR]) for row in pair)


def near_pairs(hashes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Pairs (a < b) of 64-bit hashes that differ in at most `NEAR_BITS` bits.

    At least one quarter of two such hashes is equal (three differing bits leave one of four
    untouched), so only hashes that share a quarter are compared. A quarter shared by more than
    `CROWD` is that of flat pictures and says nothing.
    """
    found: set[tuple[int, int]] = set()
    for quarter in range(4):
        part = (hashes >> np.uint64(16 * quarter)) & np.uint64(0xFFFF)
        groups: dict[int, list[int]] = defaultdict(list)
        for place, value in enumerate(part.tolist()):
            groups[value].append(place)
        for group in groups.values():
            if 1 < len(group) <= CROWD:
                own = hashes[group]
                differing = np.bitwise_count(own[:, None] ^ own[None, :])
                for a, b in combinations(range(len(group)), 2):
                    if differing[a, b] <= NEAR_BITS:
                        found.add((group[a], group[b]))
    return sorted(found)


def difference_hash(pixels: images.Pixels) -> int:
    """64 bits: whether each of 8 x 8 cells is brighter than the one to its right."""
    grey = Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(grey, dtype=np.int16)
    bits = (cells[:, :-1] > cells[:, 1:]).ravel()
    return int(np.packbits(bits).view(">u8")[0])


def _look(locator: str) -> _Look:
    row: Mapping[str, Any] = loading.load(locator)
    if row.get(schema.DROP_REASON) is not None:
        return _Look(str(row[schema.DROP_REASON]))
    encoded = row[schema.IMAGE]
    content = hashlib.blake2b(encoded, digest_size=16).digest()
    picture = difference_hash(images.decode(encoded))
    return _Look(None, content, picture, images.grey_range(encoded))
