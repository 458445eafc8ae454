"""The miniature detector: a small YOLO of ultralytics' modules, for vehicles and people."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from ray_reid.miniature.chance import generator
from ray_reid.miniature.drawing import Domain, draw
from ray_reid.miniature.pedestrians import MAX_PEDESTRIANS, Pedestrian, pedestrian_identity
from ray_reid.miniature.scenes import CLASSES, draw_scene
from ray_reid.miniature.trainers.drawings import TRAIN_WORLD
from ray_reid.miniature.vehicles import MAX_VEHICLES, Vehicle, vehicle_identity
from ray_reid.models.pretrained.detector import quiet_ultralytics

SIDE = 128
NUM = 6000
EPOCHS = 16
BATCH = 16
# One object that fills the picture, as generators draw; the others are scenes of vehicles.
SINGLE_SHARE = 0.7
# Buses and trucks are rare among the drawn identities: singles ask for a class first.
SINGLES = ("car", "car", "bus", "truck", "person")
SINGLE_SIDE = 64
MAX_IN_SCENE = 2
MODEL: dict[str, Any] = {
    "nc": len(CLASSES),
    "names": dict(enumerate(CLASSES)),
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C2f", [32, True]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "C2f", [64, True]],
        [-1, 1, "Conv", [96, 3, 2]],
        [-1, 1, "C2f", [96, True]],
        [-1, 1, "SPPF", [96, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 1, "C2f", [64]],
        [-1, 1, "Conv", [64, 3, 2]],
        [[-1, 7], 1, "Concat", [1]],
        [-1, 1, "C2f", [96]],
        [[10, 13], 1, "Detect", [len(CLASSES)]],
    ],
}


def train(seed: int, cache: Path, out: Path) -> None:
    """Train on pictures of both domains and save architecture, names and fp16 weights."""
    quiet_ultralytics()
    from ultralytics import YOLO

    data = _folder(NUM, TRAIN_WORLD, cache)
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.yaml").write_text(yaml.safe_dump(MODEL, sort_keys=False))
    model = YOLO(str(out / "model.yaml"), task="detect")
    model.train(
        data=str(data), epochs=EPOCHS, imgsz=SIDE, batch=BATCH, nbs=BATCH, device="cpu", workers=0,
        amp=False, pretrained=False, plots=False, seed=seed, deterministic=True, mosaic=0.4,
        close_mosaic=3, optimizer="AdamW", lr0=2e-3, lrf=0.01, cos_lr=True, warmup_epochs=1.0,
        warmup_bias_lr=0.0, val=False, verbose=True,
        project=str(cache.resolve() / "ultralytics"), name="detector", exist_ok=True,
    )  # fmt: skip
    best = YOLO(str(model.trainer.last))
    state = {name: value.half() for name, value in best.model.state_dict().items()}
    save_file(
        {name: value.contiguous() for name, value in state.items()}, out / "model.safetensors"
    )
    meta = {"image_size": SIDE, "names": list(CLASSES)}
    (out / "config.json").write_text(json.dumps(meta, indent=2) + "\n")


Picture = tuple[NDArray[np.uint8], list[tuple[int, int, int, int]], list[str]]


def pictures(num: int, world: int, singles: float = SINGLE_SHARE) -> Iterator[Picture]:
    """Draw pictures with their boxes and class names; equal arguments give equal pictures."""
    wanted = [(world, number, singles) for number in range(num)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_picture, wanted, chunksize=16)


def _picture(wanted: tuple[int, int, float]) -> Picture:
    world, number, singles = wanted
    rng = generator("detector", world, number)
    domain: Domain = "street" if rng.uniform() < 0.5 else "showroom"
    if rng.uniform() >= singles:
        num_vehicles = int(rng.integers(1, MAX_IN_SCENE + 1))
        scene = draw_scene(world * 1000 + number, num_vehicles, (SIDE, SIDE), domain=domain)
        return scene.image, scene.boxes, scene.class_names
    name = str(rng.choice(SINGLES))
    drawn = draw(_one_of(name, rng), domain=domain, size=(SINGLE_SIDE, SINGLE_SIDE))
    return drawn.image, [drawn.box], [name]


def _one_of(name: str, rng: np.random.Generator) -> Vehicle | Pedestrian:
    """An identity of class `name`."""
    if name == "person":
        return pedestrian_identity(int(rng.integers(MAX_PEDESTRIANS)), int(rng.integers(2**31)))
    while True:
        vehicle = vehicle_identity(int(rng.integers(MAX_VEHICLES)), int(rng.integers(2**31)))
        style = vehicle.model.body_style
        if name == (style if style in ("bus", "truck") else "car"):
            return vehicle


def _folder(num: int, world: int, cache: Path) -> Path:
    """Write ultralytics' own layout: images, and one text file of boxes for each."""
    root = (cache / f"detector-{num}-{world}").resolve()
    data = root / "data.yaml"
    if data.exists():
        return data
    shutil.rmtree(root, ignore_errors=True)
    for part in ("images/train", "labels/train"):
        (root / part).mkdir(parents=True)
    for number, (image, boxes, names) in enumerate(pictures(num, world)):
        Image.fromarray(image).save(root / "images/train" / f"{number:06d}.png")
        height, width = image.shape[:2]
        lines = []
        for (left, top, right, bottom), name in zip(boxes, names, strict=True):
            place = (left + right) / 2 / width, (top + bottom) / 2 / height
            size = (right - left) / width, (bottom - top) / height
            numbers = " ".join(f"{value:.5f}" for value in (*place, *size))
            lines.append(f"{CLASSES.index(name)} {numbers}\n")
        (root / "labels/train" / f"{number:06d}.txt").write_text("".join(lines))
    data.write_text(yaml.safe_dump(
        {"path": str(root), "train": "images/train", "val": "images/train",
         "names": dict(enumerate(CLASSES))}
    ))  # fmt: skip
    return data
