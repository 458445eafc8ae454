"""Boxes of one image to crops: what a detector has found in a frame, to be embedded."""

from typing import Any

import numpy as np
from PIL import Image

from ray_reid.images import Pixels


def cut(pixels: Pixels, boxes: Any) -> list[Image.Image]:
    """Cut boxes out of an image; what lies outside the image is clipped, edges are rounded.

    Args:
        pixels: (H, W, 3) RGB.
        boxes: (N, 4) left, top, right and bottom in pixels; or an object that has them as `xyxy`,
            such as `supervision.Detections` or the boxes of Ultralytics.

    Raises:
        ValueError: If they are no boxes, or one of them holds no pixel of the image.
    """
    given = getattr(boxes, "xyxy", boxes)
    if hasattr(given, "detach"):
        # A tensor may lie on a GPU.
        given = given.detach().cpu()
    try:
        corners = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"boxes are not (N, 4) numbers: {error}") from error
    if corners.size == 0:
        return []
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(
            f"boxes have the shape {list(corners.shape)}, but (N, 4) is needed: left, top, right "
            "and bottom of each"
        )
    height, width = pixels.shape[:2]
    clipped = np.clip(corners, 0, [width, height, width, height])
    whole = np.isfinite(corners).all(axis=1, keepdims=True)
    left, top, right, bottom = np.rint(np.where(whole, clipped, 0)).astype(int).T
    empty = np.flatnonzero((right <= left) | (bottom <= top))
    if len(empty):
        number = int(empty[0])
        raise ValueError(
            f"box {number} is {corners[number].tolist()} (left, top, right, bottom) and holds no "
            f"pixel of the image of {width} x {height}"
        )
    edges = zip(left, top, right, bottom, strict=True)
    return [Image.fromarray(pixels[t:b, x:r]) for x, t, r, b in edges]
