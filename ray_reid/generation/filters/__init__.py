"""Filters measure an image and mark it; none deletes a row, so rejects can be looked at.

A filter is a stage over the packed `pixels` column: it adds its scores and, where the row has no
`drop_reason` yet, its own (`name: what was measured`). It measures every image that was made, also
those that an earlier filter dropped, so that filters can be compared (`passed_NAME` in the scores).
"""

from ray_reid.generation.filters.category import CategoryFilter
from ray_reid.generation.filters.classifier import ClassifierFilter
from ray_reid.generation.filters.clothes import ClothesFilter
from ray_reid.generation.filters.colour import ColourFilter
from ray_reid.generation.filters.detection import DetectionFilter
from ray_reid.generation.filters.reid import ReidFilter

FILTERS: dict[str, type] = {
    "detection": DetectionFilter,
    "colour": ColourFilter,
    "clothes": ClothesFilter,
    "category": CategoryFilter,
    "classifier": ClassifierFilter,
    "reid": ReidFilter,
}
