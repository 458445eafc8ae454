"""The layout of Market-1501: three folders, and identity and camera in the names."""

from pathlib import Path

from ray_reid import schema
from ray_reid.datasets.export import writing
from ray_reid.datasets.export.writing import GALLERY_ROLES, ExportSummary, NumberedRows
from ray_reid.datasets.readers import market1501
from ray_reid.datasets.reading import Row
from ray_reid.places import Place

# Prefixes of the names of images that have no identity.
NAMELESS = {role: number for number, role in market1501.ROLES.items()}


def write_market1501(table: Place, folder: Path) -> ExportSummary:
    """Write all splits in the layout of Market-1501, distractors and junk too.

    Raises:
        ValueError: If the folder is not empty, there is nothing to write, or there are more than
            nine cameras: the layout has one digit for them, and readers would take 15 for 1.
    """
    numbered = writing.number_rows(table, splits=tuple(market1501.FOLDERS), roles=GALLERY_ROLES)
    writing.check_cameras(numbered, 9, "Market-1501")
    stems = [
        f"{_identity(numbered, row)}_c{numbered.camera(row)}s1_{place:06d}_00"
        for row, place in zip(numbered.rows, numbered.places, strict=True)
    ]
    paths = writing.paths_by_id(numbered, stems, lambda row: market1501.FOLDERS[row[schema.SPLIT]])
    with writing.aside(folder) as out:
        for name in market1501.FOLDERS.values():
            (out / name).mkdir()
        writing.write_numbers(numbered, out)
        writing.write_images(table, paths, out, as_jpeg=True)
    return numbered.summary()


def _identity(numbered: NumberedRows, row: Row) -> str:
    if row[schema.ROLE] == "normal":
        return f"{numbered.identity(row):04d}"
    number = NAMELESS[row[schema.ROLE]]
    return f"{number:04d}" if number >= 0 else str(number)
