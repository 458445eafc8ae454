"""The layout of VehicleX: `sys_image_train` and `train_label.xml`."""

from collections.abc import Sequence
from pathlib import Path

from ray_reid import schema
from ray_reid.datasets.export import labels, writing
from ray_reid.datasets.export.writing import ExportSummary, NumberedRows
from ray_reid.places import Place


def write_vehiclex(table: Place, folder: Path) -> ExportSummary:
    """Write the train split in the layout of VehicleX: `sys_image_train` and `train_label.xml`.

    An attribute that is not known of an image is absent from its entry, and those that the layout
    lacks (brand, model, year) are written under their own names.

    Raises:
        ValueError: If the folder is not empty or there is nothing to write.
    """
    numbered = writing.number_rows(table, splits=("train",))
    writing.check_cameras(numbered, 999, "VehicleX")
    stems = [
        f"{numbered.identity(row):05d}_c{numbered.camera(row):03d}_{place}"
        for row, place in zip(numbered.rows, numbered.places, strict=True)
    ]
    paths = writing.paths_by_id(numbered, stems, lambda _: "sys_image_train")
    with writing.aside(folder) as out:
        writing.write_numbers(numbered, out)
        labels.write(_items(numbered, stems), out)
        writing.write_images(table, paths, out, as_jpeg=True)
    return numbered.summary()


def _items(numbered: NumberedRows, stems: Sequence[str]) -> list[labels.Item]:
    return [
        labels.Item(
            image=f"{stem}.jpg",
            identity=numbered.identity(row),
            camera=numbered.camera(row),
            attributes={name: value for name, value in row[schema.ATTRIBUTES] or () if value},
        )
        for row, stem in zip(numbered.rows, stems, strict=True)
    ]
