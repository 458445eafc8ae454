"""DLCR: the train split of another set with other clothes, painted in by a diffusion model.

train/094_1_c9_015923.png    strip of 10 variants of that image, side by side
train/094_1_c9_015923.txt    10 lines `upper| lower| shoes`, one per variant

The tree is that of the parent set, and so are identity and camera. A strip has the stem of its
image (094.png, else 094.jpg) or its whole name (094.jpg.png).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, model_validator

from ray_reid import images, schema
from ray_reid.datasets import clothes, reading
from ray_reid.datasets.loading import strip
from ray_reid.datasets.readers import ccvid, last, ltcc, prcc, vc_clothes
from ray_reid.datasets.reading import LOCATOR, Layout, ReaderSource, Reading, Row


class DLCRSource(ReaderSource):
    """Images that DLCR generated for the train split of another set: the same people, redressed."""

    reader: Literal["dlcr"] = "dlcr"
    root: str
    """The folder with the tree of the parent set, or a parent of it."""
    parent: Literal["prcc", "ltcc", "vc_clothes", "ccvid", "last"]
    """The reader of the set whose images were redressed."""
    parent_name: str | None = None
    """The `name` of that source in the recipe: identities and parents are written in it. Null
    takes `parent`, which is the default name of each."""
    form: Literal["strips", "images"] = "strips"
    """Variants of an image side by side in one file, as released; or one file per variant below
    <clothes id>/<identity>/, as the authors' generator writes them for PRCC."""
    variants: int = Field(10, ge=1)
    """Images in a strip."""
    name: str | None = None
    """Null takes `<parent>_dlcr`."""
    licence: str | None = None
    """Terms of the images; null takes those of the parent set."""

    @model_validator(mode="after")
    def _has_form(self) -> "DLCRSource":
        if self.form == "images" and self.parent != "prcc":
            raise ValueError(f"form 'images' is known of parent 'prcc', not of {self.parent!r}")
        return self


GENERATOR = "dlcr"
# What a line of prompts describes, in its order.
PARTS = ("upper", "lower", "footwear")
# The authors' generator names clothes after those who wore them: on cameras A and B, or on C.
OUTFIT = re.compile(r"(AB|C)_.+")
RANKS = {".png": 1, ".jpg": 2}


@dataclass(frozen=True)
class Parent:
    """A set whose images were redressed."""

    source: type[ReaderSource]
    parse: clothes.Parse
    wanted: tuple[str, ...]
    """Where its train images lie below the root: the first of them that exists."""
    suffix: str = ".jpg"
    """Ending of its files."""

    @property
    def licence(self) -> str | None:
        """The terms that its source has by default."""
        terms: str | None = self.source.model_fields["licence"].default
        return terms


PARENTS: Mapping[str, Parent] = {
    "prcc": Parent(prcc.PRCCSource, prcc.parse, ("rgb/train", "train")),
    "ltcc": Parent(ltcc.LTCCSource, ltcc.parse, ("train",), ".png"),
    "vc_clothes": Parent(vc_clothes.VCClothesSource, vc_clothes.parse, ("train",)),
    "ccvid": Parent(ccvid.CCVIDSource, ccvid.parse, ccvid.SESSIONS),
    "last": Parent(last.LaSTSource, last.parse, ("train",)),
}


@dataclass(frozen=True)
class _Generated:
    """A file of variants and the image that they were made of."""

    file: Path
    original: PurePosixPath
    """Relative to the folder that the parent's reader takes its ids from."""
    shot: clothes.ClothesShot
    outfit: str | None = None
    """Whose clothes these are, where the place says it."""


def read_dlcr(source: DLCRSource) -> Reading:
    """One row per variant, all of them for training, with clothes that no other image has.

    A strip that is not `variants` images wide is found when it is loaded.

    Raises:
        ValueError: If no image of the parent set is found, or nothing can be trained on.
    """
    place = _locate(source)
    where = repr(str(place))
    found, warnings = _per_image(source, place) if _single(source) else _strips(source, place)
    rows: list[Row] = []
    silent: list[Path] = []
    for generated in found:
        if _single(source):
            rows.append(_row(source, place, generated, None, None))
            continue
        prompts = _prompts(generated)
        if len(prompts) != source.variants:
            silent.append(generated.file)
            prompts = [None] * source.variants
        rows += [_row(source, place, generated, i, prompt) for i, prompt in enumerate(prompts)]
    if silent:
        warnings.append(
            f"{len(silent)} of {len(found)} strips of {where} have no .txt of {source.variants} "
            f"lines beside them, e.g. {silent[0].name!r}; their prompts are not known"
        )
    if not rows:
        raise ValueError("; ".join(warnings) or f"{where} holds no image")
    reading.check_training(rows, where)
    return Reading(rows, warnings)


def files(source: DLCRSource) -> list[Path]:
    """The files that a reading depends on."""
    place = _locate(source)
    folders = _folders(source, place)
    lists = [file for file in [place / ccvid.LISTS["train"]] if file.is_file()]
    texts = [file for folder in folders for file in sorted(folder.rglob("*.txt"))]
    pictures = [file for folder in folders for file in reading.list_images(folder)]
    return [*pictures, *texts, *lists]


def recognise(root: Path) -> DLCRSource | None:
    """None: the tree is that of the parent set, so only the user can say that these are strips."""
    del root
    return None


def _strips(source: DLCRSource, place: Path) -> tuple[list[_Generated], list[str]]:
    where = repr(str(place))
    parent = PARENTS[source.parent]
    best: dict[PurePosixPath, tuple[int, _Generated]] = {}
    strange: list[Path] = []
    double: list[Path] = []
    for file in _images(source, place):
        original, rank = _original(PurePosixPath(file.relative_to(place).as_posix()), parent)
        shot = parent.parse(original)
        if shot is None:
            strange.append(file)
            continue
        known = best.get(original.with_suffix(""))
        if known is None or rank < known[0]:
            best[original.with_suffix("")] = rank, _Generated(file, original, shot)
        if known is not None:
            double.append(file if rank >= known[0] else known[1].file)
    found, others = _trained(source, place, [generated for _, generated in best.values()])
    return found, [
        *reading.left_out(strange, f"have no name of {source.parent}", where),
        *reading.left_out(double, "are beside a strip of the same image", where),
        *others,
    ]


def _original(place: PurePosixPath, parent: Parent) -> tuple[PurePosixPath, int]:
    """The image that a strip is named after, and how sure that is: less is surer."""
    if PurePosixPath(place.stem).suffix.lower() in images.SUFFIXES:
        return place.with_name(place.stem), 0
    return place.with_suffix(parent.suffix), RANKS.get(place.suffix.lower(), len(RANKS) + 1)


def _trained(
    source: DLCRSource, place: Path, found: list[_Generated]
) -> tuple[list[_Generated], list[str]]:
    """Those of training images: CCVID's folders hold test videos too, and only a list tells."""
    if source.parent != "ccvid":
        return found, []
    where = repr(str(place))
    file = place / ccvid.LISTS["train"]
    if not file.is_file():
        return found, [f"{where} has no {file.name}; all its strips are taken for training images"]
    train = {tracklet.folder for tracklet in ccvid.read_list(file, "train")}
    test = [one.file for one in found if one.shot.track not in train]
    kept = [one for one in found if one.shot.track in train]
    return kept, reading.left_out(test, f"are of no tracklet in {file.name}", where)


def _per_image(source: DLCRSource, place: Path) -> tuple[list[_Generated], list[str]]:
    """Files <clothes id>/<identity>/<stem>.png, each of them one variant."""
    found: list[_Generated] = []
    strange: list[Path] = []
    parent = PARENTS[source.parent]
    for file in _images(source, place):
        outfit, *inner = file.relative_to(place).parts
        original = PurePosixPath("train", *inner).with_suffix(parent.suffix)
        shot = parent.parse(original)
        if shot is None:
            strange.append(file)
        else:
            found.append(_Generated(file, original, shot, outfit))
    why = "have no place like AB_001/002/A_cropped_rgb001.png"
    return found, reading.left_out(strange, why, repr(str(place)))


def _row(
    source: DLCRSource, place: Path, generated: _Generated, index: int | None, prompt: str | None
) -> Row:
    """One variant: an image file, or the `index`-th part of a strip."""
    parent = source.parent_name or source.parent
    name = source.name or f"{source.parent}_dlcr"
    file, shot = generated.file, generated.shot
    where = file.relative_to(place).as_posix()
    attributes = _attributes(prompt)
    row = reading.file_row(
        name,
        place,
        file,
        identity=schema.qualified_identity(parent, shot.identity),
        camera=shot.camera,
        clothes=f"{shot.identity}_{generated.outfit or f'{name}/{where}/{index}'}",
        licence=source.licence or PARENTS[source.parent].licence,
        split="train",
        origin="synthetic",
        parent=schema.observation_id(parent, generated.original.as_posix()),
        prompt=prompt,
        generator=GENERATOR,
        attributes=attributes or None,
    )
    if index is None:
        return row
    return {
        **row,
        schema.OBSERVATION_ID: schema.observation_id(name, where, index),
        # Schedules draw from the first variants of an image.
        schema.ATTRIBUTES: {**attributes, "variant": str(index)},
        LOCATOR: strip(file, index, source.variants),
    }


def _prompts(generated: _Generated) -> list[str | None]:
    """The lines beside a strip, which is named by the image's stem or its whole name."""
    texts = (
        generated.file.with_suffix(".txt"),
        generated.file.with_name(f"{generated.original.stem}.txt"),
    )
    text = next((text for text in texts if text.is_file()), None)
    if text is None:
        return []
    return [line.strip() for line in reading.read_text(text).splitlines() if line.strip()]


def _attributes(prompt: str | None) -> dict[str, str]:
    """What a line says of each part; spacing, case and the final dot vary and mean nothing."""
    said = [part.strip(" .").lower() for part in (prompt or "").split("|")]
    if len(said) != len(PARTS):
        return {}
    return {name: value for name, value in zip(PARTS, said, strict=True) if value}


def _images(source: DLCRSource, place: Path) -> Iterator[Path]:
    for folder in _folders(source, place):
        yield from reading.list_images(folder)


def _folders(source: DLCRSource, place: Path) -> list[Path]:
    """Where the generated images lie below `place`."""
    if _single(source):
        return _outfits(place)
    names = sorted({PurePosixPath(folder).name for folder in PARENTS[source.parent].wanted})
    return [place / name for name in names if (place / name).is_dir()]


def _locate(source: DLCRSource) -> Path:
    """The folder that the paths of the parent's images are relative to, or that of the outfits."""
    root = reading.folder(source.root)
    if _single(source):
        levels = ([root], sorted(root.glob("*")), sorted(root.glob("*/*")))
        place = next((here for level in levels for here in level if _outfits(here)), None)
        if place is None:
            raise ValueError(
                f"no folder named like AB_001 or C_001 in {str(root)!r}, its sub-folders and theirs"
            )
        return place
    wanted: Sequence[str] = PARENTS[source.parent].wanted
    for folder in wanted:
        above = reading.found(root, [folder])
        if above is not None:
            return above / PurePosixPath(folder).parent
    return reading.locate(source.root, wanted[-1:], f"{source.parent} (for DLCR)")


def _outfits(folder: Path) -> list[Path]:
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inner if path.is_dir() and OUTFIT.fullmatch(path.name)]


def _single(source: DLCRSource) -> bool:
    return source.form == "images"


LAYOUT = Layout(
    DLCRSource,
    read_dlcr,
    files,
    recognise,
    terms="as the parent set",
    # The images of the parent may lie in the same tree.
    aside=lambda _: ("rgb", "train", "val", "test", "query", "gallery", *ccvid.SESSIONS),
)
