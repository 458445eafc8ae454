"""Filters measure an image and mark it; none deletes a row, so rejects can be looked at.

A filter is a stage over the packed `pixels` column: it adds its scores and, where the row has no
`drop_reason` yet, its own (`name: what was measured`). Rows marked before are not looked at again.
"""

from ray_reid.generation.filters.clothes import ClothesFilter
from ray_reid.generation.filters.colour import ColourFilter
from ray_reid.generation.filters.detection import DetectionFilter

FILTERS: dict[str, type] = {
    "detection": DetectionFilter,
    "colour": ColourFilter,
    "clothes": ClothesFilter,
}
