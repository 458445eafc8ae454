"""Tables of OpenMetricLearning (OML): a CSV file with one image, or one box of it, per row.

label,split,is_query,is_gallery,path,sequence,category,x_1,x_2,y_1,y_2
7,train,,,images/a.jpg,,,,,,
8,validation,True,False,images/b.jpg,4,car,10,90,5,60
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ray_reid import schema
from ray_reid.datasets import reading
from ray_reid.datasets.loading import crop
from ray_reid.datasets.reading import LOCATOR, Layout, ReaderSource, Reading, Row
from ray_reid.datasets.tables import check_distinct, inside


class OMLSource(ReaderSource):
    """A table of images as OpenMetricLearning (OML) defines it."""

    reader: Literal["oml"] = "oml"
    root: str
    """The folder that the paths in the table are relative to."""
    table: str | None = None
    """CSV file under `root`; null takes the only one directly in it."""
    name: str = "oml"
    licence: str | None = None


REQUIRED = ("label", "split", "is_query", "is_gallery", "path")
BOX = ("x_1", "y_1", "x_2", "y_2")
OPTIONAL = ("sequence", "category", *BOX)
# Tables that pandas wrote have 1.0 for what was true in a column with empty cells.
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": None}

Cells = Mapping[str, str]


def read_oml(source: OMLSource) -> Reading:
    """One row per image or box; an image that is query and gallery becomes two rows.

    Both have one `track`: OML ignores the identical image, and what has the query's sequence.

    Raises:
        ValueError: If the table breaks a rule of the format, naming the line.
    """
    root = reading.folder(source.root)
    table = _table(source, root)
    where = repr(str(table))
    lines = _lines(table)
    rows: list[Row] = []
    for number, cells in lines:
        try:
            rows += _rows(source, root, cells)
        except ValueError as error:
            raise ValueError(f"{where}, line {number}: {error}") from error
    _check_paths(root, lines, where)
    _check_labels(lines, where)
    check_distinct(rows, where)
    reading.check_disjoint(rows, where)
    reading.check_training(rows, where)
    warnings = reading.check_queries(rows, where)
    return Reading(rows, [*warnings, *_twice(lines, where), *_unread(lines, where)])


def files(source: OMLSource) -> list[Path]:
    """The files that a reading depends on."""
    root = reading.folder(source.root)
    table = _table(source, root)
    return [table, *sorted({root / inside(cells["path"]) for _, cells in _lines(table)})]


def recognise(root: Path) -> OMLSource | None:
    """A folder with one .csv file directly in it, which has the columns of the format."""
    source = OMLSource(root=str(root))
    try:
        _lines(_table(source, reading.folder(str(root))), first=True)
    except ValueError:
        return None
    return source


def _table(source: OMLSource, root: Path) -> Path:
    if source.table is not None:
        if not (root / source.table).is_file():
            raise ValueError(f"table {source.table!r} is no file of {str(root)!r}")
        return root / source.table
    found = [p for p in sorted(root.iterdir()) if p.suffix.lower() == ".csv" and p.name[0] != "."]
    if len(found) != 1:
        names = [file.name for file in found]
        raise ValueError(
            f"{str(root)!r} holds {len(found)} .csv files; set table to the one of OML, {names}"
        )
    return found[0]


def _lines(table: Path, first: bool = False) -> list[tuple[int, Cells]]:
    """The cells of each line, or of the first one only, by its number.

    Raises:
        ValueError: If a column is missing or a line has another number of cells.
    """
    lines = csv.DictReader(reading.read_text(table).splitlines(), strict=True)
    missing = [name for name in REQUIRED if name not in (lines.fieldnames or ())]
    if missing:
        kind = "; images are read, not texts" if "text" in (lines.fieldnames or ()) else ""
        raise ValueError(
            f"{str(table)!r} lacks the columns {missing} of an OML table; it has "
            f"{list(lines.fieldnames or ())}{kind}"
        )
    boxes = [name for name in BOX if name in (lines.fieldnames or ())]
    if boxes and len(boxes) < len(BOX):
        raise ValueError(f"{str(table)!r} has {boxes} of the columns {list(BOX)}; a box needs all")
    found: list[tuple[int, Cells]] = []
    try:
        for cells in lines:
            if None in cells or None in cells.values():
                wanted = len(lines.fieldnames or ())
                raise ValueError(f"{str(table)!r}, line {lines.line_num}: not {wanted} cells")
            found.append((lines.line_num, {name: cell.strip() for name, cell in cells.items()}))
            if first:
                break
    except csv.Error as error:
        raise ValueError(f"{str(table)!r}, line {lines.line_num}: {error}") from error
    return found


def _rows(source: OMLSource, root: Path, cells: Cells) -> list[Row]:
    splits = _splits(cells)
    place = inside(cells["path"])
    box = _box(cells)
    part = () if box is None else (",".join(map(str, box)),)
    file = root / place
    track = _number(cells.get("sequence", "")) or None
    if track is None and len(splits) == 2:
        track = "/".join((place, *part))
    category = cells.get("category")
    columns = {
        schema.IDENTITY: schema.qualified_identity(source.name, str(_integer("label", cells))),
        schema.CAMERA: None,
        schema.TRACK: track,
        schema.LICENCE: source.licence,
        schema.ATTRIBUTES: {"category": category} if category else None,
    }
    if box is not None:
        columns[LOCATOR] = crop(file, box)
    rows = []
    for split in splits:
        copy = (split,) if len(splits) == 2 and split == "query" else ()
        row = reading.file_row(source.name, root, file, split=split, **columns)
        if part or copy:
            row[schema.OBSERVATION_ID] = schema.observation_id(source.name, place, *part, *copy)
        rows.append(row)
    return rows


def _splits(cells: Cells) -> list[str]:
    query, gallery = _truth("is_query", cells), _truth("is_gallery", cells)
    if cells["split"] == "train":
        if query is not None or gallery is not None:
            raise ValueError("is_query and is_gallery must be empty in the split 'train'")
        return ["train"]
    if cells["split"] != "validation":
        raise ValueError(f"split {cells['split']!r} is not one of ['train', 'validation']")
    if not query and not gallery:
        raise ValueError("a validation image must be query or gallery, or both")
    return [name for name, said in (("query", query), ("gallery", gallery)) if said]


def _truth(column: str, cells: Cells) -> bool | None:
    value = cells[column]
    if value.lower() not in TRUTH:
        raise ValueError(f"{column} {value!r} is not True, False or empty")
    return TRUTH[value.lower()]


def _box(cells: Cells) -> tuple[int, int, int, int] | None:
    given = [name for name in BOX if cells.get(name)]
    if not given:
        return None
    if len(given) < len(BOX):
        raise ValueError(f"a box needs all of {list(BOX)}, or none; only {given} are given")
    left, top, right, bottom = (_integer(name, cells) for name in BOX)
    if not (0 <= left < right and 0 <= top < bottom):
        raise ValueError(
            f"box {[left, top, right, bottom]} of {list(BOX)} needs 0 <= x_1 < x_2 and "
            "0 <= y_1 < y_2"
        )
    return left, top, right, bottom


def _integer(column: str, cells: Cells) -> int:
    try:
        return int(_number(cells[column]))
    except ValueError as error:
        raise ValueError(f"{column} {cells[column]!r} is not an integer") from error


def _number(text: str) -> str:
    """Without the `.0` that pandas gives to the integers of a column with empty cells."""
    whole, dot, rest = text.partition(".")
    return whole if dot and not rest.strip("0") and whole.lstrip("-").isdecimal() else text


def _check_paths(root: Path, lines: Sequence[tuple[int, Cells]], where: str) -> None:
    absent = [cells["path"] for _, cells in lines if not (root / inside(cells["path"])).is_file()]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(lines)} paths in {where} are no file of {str(root)!r}, the "
            f"first is {absent[0]!r}"
        )


def _check_labels(lines: Sequence[tuple[int, Cells]], where: str) -> None:
    """Check that every query label is in the gallery and every label has one category."""
    gallery = {cells["label"] for _, cells in lines if _truth("is_gallery", cells)}
    alone = [c["label"] for _, c in lines if _truth("is_query", c) and c["label"] not in gallery]
    if alone:
        raise ValueError(
            f"{len(alone)} queries of {where} have a label that is not in the gallery, the first "
            f"is {alone[0]!r}"
        )
    categories: dict[str, str] = {}
    for number, cells in lines:
        category = cells.get("category", "")
        known = categories.setdefault(cells["label"], category)
        if known != category:
            raise ValueError(
                f"{where}, line {number}: label {cells['label']!r} is of category {category!r} "
                f"here and of {known!r} above; a label has one"
            )


def _twice(lines: Sequence[tuple[int, Cells]], where: str) -> list[str]:
    both = sum(bool(_truth("is_query", c) and _truth("is_gallery", c)) for _, c in lines)
    if not both:
        return []
    return [
        f"{both} images of {where} are query and gallery; a protocol must ignore the gallery "
        "images of a query's own track, or each will find itself"
    ]


def _unread(lines: Sequence[tuple[int, Cells]], where: str) -> list[str]:
    names = sorted(lines[0][1].keys() - {*REQUIRED, *OPTIONAL})
    return [f"the columns {names} of {where} are not read"] if names else []


LAYOUT = Layout(OMLSource, read_oml, files, recognise)
