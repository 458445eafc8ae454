"""The model card of a package: what it was trained on, how it was measured, how it is used."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_reid.recipe.recipe import PRETRAIN, Recipe
from ray_reid.runtime.version import VERSION

FILE = "README.md"
EVALUATION = "## Evaluation"
PICTURE = "queries and the images found for them"
UNKNOWN = "unknown: ask those who gave the images"
PROTOCOL = (
    "protocol",
    "average_precision",
    "similarity",
    "ties",
    "flip_averaging",
    "scales",
    "crop",
    "ensemble",
    "postprocess",
    "both_directions",
    "draws",
    "split",
    "seed",
    "version",
)
"""Entries of the stamp that the card shows as they are; the rest is in `metrics.json`."""
USE = """## Use

```python
import ray_reid
model = ray_reid.load("path/of/this/folder")
similarity = model.embed(["query.jpg"]) @ model.embed(["other.jpg"]).T
```

Without ray-reid: `model.safetensors` holds the weights, `preprocessing.json` what is done to an
image, `recipe.yaml` the network and its training, `labels.json` the classifier's identities."""


@dataclass(frozen=True)
class Source:
    """Training images of one origin and one licence."""

    name: str
    origin: str
    images: int
    identities: int
    licence: str | None


def write(
    recipe: Recipe,
    sources: Sequence[Source] | str,
    result: Mapping[str, Any] | None = None,
    picture: str | None = None,
    imported: Mapping[str, str] | None = None,
    weights: Sequence[str] = (),
) -> str:
    """Write the card as Markdown.

    Args:
        recipe: Of the package.
        sources: What it was trained on; or what there is to say of that.
        result: Figures and stamp, as in `metrics.json`; null if it was not evaluated.
        picture: File of ranked lists beside the card.
        imported: `peer` and `sha256` of the checkpoint that it was imported from.
        weights: References of the weights that the network began with.
    """
    parts = [_title(recipe, imported), *_picture(picture)]
    parts += [USE, _training(sources, imported) + _begun(recipe, weights), _evaluation(result)]
    return "\n\n".join(parts) + "\n"


def evaluated(page: str, result: Mapping[str, Any], picture: str | None = None) -> str:
    """Return the card of a package with another evaluation; all else stays as it was written.

    Args:
        page: The card.
        result: Figures and stamp, as in `metrics.json`.
        picture: File of ranked lists beside the card.
    """
    head, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    title = re.sub(rf"^!\[{re.escape(PICTURE)}\].*$", "", head, flags=re.MULTILINE)
    kept = [part.strip() for part in sections if not part.startswith(EVALUATION)]
    parts = [title.strip(), *_picture(picture), *kept, _evaluation(result)]
    return "\n\n".join(parts) + "\n"


def _picture(file: str | None) -> list[str]:
    return [] if file is None else [f"![{PICTURE}]({file})"]


def _title(recipe: Recipe, imported: Mapping[str, str] | None) -> str:
    spec = recipe.train
    height, width = spec.image_size
    made = f"Made with ray-reid {VERSION}, recipe `{recipe.name}`"
    if recipe.profile != "none":
        made += f", profile `{recipe.profile}`"
    if imported is not None:
        made = f"imported by ray-reid {VERSION} from a checkpoint of {imported['peer']}"
    return (
        f"# {recipe.name}\n\nA re-identification model: images of {height} x {width} pixels to "
        f"embeddings of unit norm, whose dot product is their similarity. Backbone "
        f"`{spec.backbone}`, pooling `{spec.pooling}`. {made}."
    )


def _training(sources: Sequence[Source] | str, imported: Mapping[str, str] | None) -> str:
    if imported is not None:
        return (
            "## Training and terms\n\nNot known here: those of the checkpoint hold, whose SHA-256 "
            f"is `{imported['sha256']}`."
        )
    if isinstance(sources, str):
        return f"## Training and terms\n\n{sources}"
    header = ("source", "origin", "images", "identities", "terms of the images")
    rows = [
        (one.name, one.origin, f"{one.images:,}", f"{one.identities:,}", one.licence or UNKNOWN)
        for one in sources
    ]
    return (
        "## Training and terms\n\nThe training images, of which the recipe may have used a share "
        f"(`train.mixing`, `train.real_fraction`, `train.synthetic_fraction`):\n\n"
        f"{_table(header, rows)}"
    )


def _begun(recipe: Recipe, weights: Sequence[str]) -> str:
    """The weights that the network began with: their terms hold for what came of them."""
    own = ["a pre-training on images of this table"] if recipe.train.start == PRETRAIN else []
    sources = [*own, *(f"`{one}`" for one in weights)]
    if not sources:
        return ""
    terms = ". Their terms hold too." if weights else "."
    return f"\n\nThe network began with the weights of {', '.join(sources)}{terms}"


def _evaluation(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"{EVALUATION}\n\nNot evaluated here."
    floor = result["reference"]
    figures = [
        (name, f"{value:.4f}", f"{floor[name]:.4f}" if name in floor else "-")
        for name, value in result["metrics"].items()
    ]
    stamp = result["stamp"]
    rows = [(name.replace("_", " "), _plain(stamp[name])) for name in PROTOCOL if name in stamp]
    for side in ("query", "gallery"):
        rows.append((side, ", ".join(f"{n:,} {what}" for what, n in stamp[side].items())))
    return (
        f"{EVALUATION}\n\n"
        + _table(("figure", "model", "colour histogram (no learning)"), figures)
        + "\n\nOnly figures of the same stamp can be compared:\n\n"
        + _table(("stamp", ""), rows)
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Names come from folders: a bar or a line break would break the table."""
    return " ".join(text.replace("|", "\\|").split())
