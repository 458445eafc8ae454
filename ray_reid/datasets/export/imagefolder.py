"""ImageFolder trees: a folder per identity below one per split."""

from pathlib import Path

from ray_reid import schema
from ray_reid.datasets.export import writing
from ray_reid.datasets.export.writing import LABELLED, ExportSummary
from ray_reid.places import Place


def write_imagefolder(table: Place, folder: Path) -> ExportSummary:
    """Write one folder per identity below one per split, as torchvision's ImageFolder reads them.

    Images keep their format; our reader `folder` reads the names with its default pattern.

    Raises:
        ValueError: If the folder is not empty or there is nothing to write.
    """
    numbered = writing.number_rows(table, splits=LABELLED)
    stems = [
        f"{numbered.identity(row):05d}_cam{numbered.camera(row)}_{place:06d}"
        for row, place in zip(numbered.rows, numbered.places, strict=True)
    ]
    paths = writing.paths_by_id(
        numbered, stems, lambda row: f"{row[schema.SPLIT]}/{numbered.identity(row):05d}"
    )
    with writing.aside(folder) as out:
        writing.write_numbers(numbered, out)
        writing.write_images(table, paths, out, as_jpeg=False)
    return numbered.summary()
