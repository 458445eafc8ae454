"""Writers to be killed: a process that forks one for each line `PATH MODE SEED` on its stdin.

It imports no more than a writer needs and uses none of it before a fork, so a fork is safe and
costs milliseconds. A writer says `do ...` before and `ok` after each write; the parent says
`pid N` before all and `end` when the writer is dead. Each line is one write to the pipe.
"""

import json
import os
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_reid import images
from ray_reid.gallery.embedded.segment import ROWS
from ray_reid.gallery.embedded.where import Where
from ray_reid.gallery.embedded.writer import Writer

DIMENSION = 8
MODEL = "key1"
MODELS = ["key1", "key2"]
IDS = [f"id{number:02d}" for number in range(12)]
INDEXED = [f"id{number:02d}" for number in range(8, 16)]
"""What the index of each model holds: ids that are enrolled and deleted too, and others."""
CAMERAS = ["c0", "c1", "c2"]


def vector(observation_id: str, version: int, model: str = MODEL) -> np.ndarray:
    chance = np.random.default_rng([int(observation_id[2:]), version, MODELS.index(model)])
    drawn = chance.normal(size=DIMENSION).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def picture(observation_id: str, version: int) -> bytes:
    numbers = [int(observation_id[2:]), *version.to_bytes(4, "big"), 0]
    return images.encode_png(np.array(numbers, np.uint8).reshape(1, 2, 3))


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def row(observation_id: str, version: int, camera: str) -> dict[str, object]:
    return {
        "observation_id": observation_id,
        "identity": f"v{version}",
        "camera": camera,
        "source": "test",
        "split": "gallery",
        "image": picture(observation_id, version),
    }


def make_index(path: Path, model: str, index: dict[str, object]) -> None:
    """A gallery as the index job of a model makes it; its rows have version 0."""
    table = pa.Table.from_pylist([row(one, 0, "c0") for one in INDEXED], ROWS)
    vectors = np.stack([vector(one, 0, model) for one in INDEXED])
    Writer.create(path / model, model, DIMENSION, [(table, vectors)], index).close()


def embed(rows: Sequence[dict[str, Any]], model: str) -> np.ndarray:
    versions = [int(one["identity"][1:]) for one in rows]
    pairs = zip(rows, versions, strict=True)
    return np.stack([vector(one["observation_id"], version, model) for one, version in pairs])


def perform(writer: Writer, operation: str, chosen: list[list[str]], version: int) -> None:
    ids = [one[0] for one in chosen]
    model = writer.model
    if operation == "enrol":
        vectors = np.stack([vector(one, version, model) for one in ids])
        writer.enrol([row(one, version, camera) for one, camera in chosen], vectors, model)
    elif operation == "update":
        vectors = np.stack([vector(one, version, model) for one in ids])
        changes = [{"observation_id": one, "identity": f"v{version}"} for one in ids]
        writer.update(changes, vectors, model)
    elif operation == "delete":
        writer.delete(ids)
    elif operation == "delete_where":
        writer.delete_where(Where(cameras=(chosen[0][1],)))
    elif operation == "seed":
        (new, _), *_ = chosen
        index = writer.path.parent / "indexes" / new
        writer.seed(index, f"{new}-{version}", partial(embed, model=new))
    else:
        writer.compact()


def draw(chance: random.Random, writer: Writer) -> tuple[str, list[list[str]]]:
    view = writer.view()
    living = [view.id(number) for number in view.numbers(Where())]
    kinds = ["enrol", "enrol", "enrol", "compact", "seed", "delete_where"]
    operation = chance.choice([*kinds, "update", "update", "delete"] if living else kinds)
    if operation == "seed":
        return operation, [[chance.choice(MODELS), ""]]
    pool = living if operation in ("update", "delete") else IDS
    ids = chance.sample(pool, min(len(pool), chance.randint(1, 3)))
    return operation, [[one, chance.choice(CAMERAS)] for one in ids]


def write_at_random(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Writer(path) as writer:
        for step in range(100_000):
            operation, chosen = draw(chance, writer)
            version = 100_000 * seed + step
            say("do " + json.dumps([operation, chosen, version]))
            perform(writer, operation, chosen, version)
            say("ok")


def write_all_at_once(path: Path, seed: int) -> None:
    """Each write gives all ids one version, so that a reader can tell a mixture."""
    with Writer(path) as writer:
        for version in range(seed, seed + 100_000):
            say(f"do {version}")
            perform(writer, "enrol", [[one, "c0"] for one in IDS], version)
            if version % 4 == 0:
                writer.compact()
            say("ok")


def main() -> None:
    for line in sys.stdin:
        path, mode, seed = line.split()
        child = os.fork()
        if not child:
            {"random": write_at_random, "all": write_all_at_once}[mode](Path(path), int(seed))
            os._exit(0)
        say(f"pid {child}")
        os.waitpid(child, 0)
        say("end")


if __name__ == "__main__":
    main()
