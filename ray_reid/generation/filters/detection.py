"""Keep images with one clear object of the right class, and crop to it (Vehicle-Diff, III-C)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from ray_reid.generation.filters.marking import Verdict, made_rows, marked, pixels_of
from ray_reid.images import Pixels
from ray_reid.models.pretrained.detector import Box
from ray_reid.schema import Batch

VEHICLES = ("car", "bus", "truck")


class DetectionFilter:
    """Crop every image to its most prominent box, or mark it.

    Among the boxes of the wanted classes with at least `threshold` confidence the largest counts.
    The paper drops boxes of 250 pixels or less in an image of 1024; `min_side` is that share.
    """

    ROLE = "detector"

    def __init__(
        self,
        model: str,
        precision: str = "auto",
        threshold: float = 0.65,
        min_side: float = 250 / 1024,
        classes: Sequence[str] = VEHICLES,
        margin: float = 0.0,
    ) -> None:
        """Load the detector once per actor.

        Args:
            model: Reference of the detector.
            precision: Of its weights.
            threshold: Least confidence.
            min_side: Height and width of the box must be larger than this share of the image's.
            classes: Names of the classes that count.
            margin: Share of the box's sides added around it, within the image.

        Raises:
            ValueError: If the detector knows none of the classes.
        """
        from ray_reid.models.pretrained import detector

        self.model = detector.load(model, precision)
        known = self.model.labels()
        if not set(classes) & set(known):
            raise ValueError(
                f"filter detection: the detector knows none of {list(classes)}; choose from {known}"
            )
        self.threshold, self.min_side = threshold, min_side
        self.classes, self.margin = frozenset(classes), margin

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Mark a batch; images with a clear box are cropped to it, the others stay whole.

        What an earlier filter dropped is cropped as well, so that later filters measure all images
        alike.
        """
        rows = made_rows(batch)
        found = pixels_of(batch, rows)
        # The score of a faint box explains a reject better than none at all.
        boxes = self.model.detect(found, min(0.05, self.threshold)) if found else []
        verdicts = [self._verdict(*pair) for pair in zip(found, boxes, strict=True)]
        return marked(batch, rows, verdicts, "detection")

    def _verdict(self, pixels: Pixels, boxes: Sequence[Box]) -> Verdict:
        height, width = pixels.shape[:2]
        wanted = [_within(box, height, width) for box in boxes if box.label in self.classes]
        clear = [box for box in wanted if box.confidence >= self.threshold]
        best = max((box.confidence for box in wanted), default=0.0)
        if not clear:
            reason = f"detection: best confidence {best:.2f} is below {self.threshold:g}"
            return Verdict({"detection": best}, reason)
        box = max(clear, key=lambda box: (box.right - box.left) * (box.bottom - box.top))
        wide, high = box.right - box.left, box.bottom - box.top
        scores = {"detection": box.confidence, "box_width": wide, "box_height": high}
        # One pixel at least: less may round to an empty crop.
        if wide <= max(self.min_side * width, 1.0) or high <= max(self.min_side * height, 1.0):
            reason = f"size: box of {high:.0f} x {wide:.0f} pixels in {height} x {width}"
            return Verdict(scores, reason)
        return Verdict(scores, None, self._crop(pixels, box))

    def _crop(self, pixels: Pixels, box: Box) -> Pixels:
        height, width = pixels.shape[:2]
        x, y = self.margin * (box.right - box.left), self.margin * (box.bottom - box.top)
        left, top = max(0, round(box.left - x)), max(0, round(box.top - y))
        right, bottom = min(width, round(box.right + x)), min(height, round(box.bottom + y))
        return pixels[top:bottom, left:right]


def _within(box: Box, height: int, width: int) -> Box:
    """The part of a box that lies in the image; some detectors see beyond its edges."""
    left, right = (min(max(edge, 0.0), float(width)) for edge in (box.left, box.right))
    top, bottom = (min(max(edge, 0.0), float(height)) for edge in (box.top, box.bottom))
    return replace(box, left=left, top=top, right=right, bottom=bottom)
