"""Checkpoints of peers as model packages: the same features from the same pixels."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ray_reid import places
from ray_reid.models import card, package
from ray_reid.models.checkpoints import residual, swin, vision
from ray_reid.models.checkpoints.peer import Converted, Peer
from ray_reid.models.networks import ReidNetwork
from ray_reid.models.pretrained import weight_files
from ray_reid.models.pretrained.weight_files import some
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.recipe.train import Train

PEERS: dict[str, Peer] = {
    "fastreid": residual.FASTREID,
    "torchreid": residual.TORCHREID,
    "transreid": vision.TRANSREID,
    "clipreid": vision.CLIPREID,
    "solider": swin.SOLIDER,
    "cal": residual.CAL,
}
CLASSIFIER = "classifier_state_dict"
SOURCE = "imported.json"


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint."""

    identities: int
    left_out: Mapping[str, int]
    """Numbers of weights that no embedding needs, by the first part of their names."""


def import_checkpoint(
    file: Path, folder: Path, peer: str, overrides: Sequence[str] = ()
) -> Imported:
    """Write a peer's checkpoint as a model package.

    Args:
        file: Of safetensors or torch.save; what is no tensor or plain value is not read.
        folder: New directory of the package.
        peer: One of PEERS.
        overrides: `train.key=value` that differ from the peer's published models, such as
            `train.backbone=resnet101`.

    Raises:
        ValueError: If the file cannot be read, or a weight has no place or is missing.
    """
    if peer not in PEERS:
        raise ValueError(f"unknown peer {peer!r}; choose from {sorted(PEERS)}")
    if folder.exists():
        raise ValueError(f"{str(folder)!r} exists; give a new folder")
    chosen = PEERS[peer]
    where = f"{chosen.title} checkpoint {str(file)!r}"
    try:
        converted = chosen.convert(read(file))
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error
    recipe = recipe_of(peer, converted, overrides)
    state = _build(recipe.train, converted.num_classes).state_dict()
    try:
        weights = fitted(converted, chosen, recipe.train, state)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error
    identities = [f"imported:{label}" for label in range(len(weights["head.weight"]))]
    _write(folder, recipe, identities, weights, {"peer": chosen.title, "sha256": _digest(file)})
    groups = Counter(name.partition(".")[0] for name in converted.left_out)
    return Imported(len(identities), dict(sorted(groups.items())))


def read(file: Path) -> dict[str, Tensor]:
    """Weights by the peer's names, without wrappers; a classifier kept apart is `classifier.*`.

    Raises:
        ValueError: If the file holds no weights; nothing in it is executed.
    """
    found = weight_files.load(file)
    aside = found.get(CLASSIFIER) if isinstance(found, Mapping) else None
    named = weight_files.weights(found)
    if isinstance(aside, Mapping) and aside:
        apart = weight_files.weights(aside)
        named |= {f"classifier.{name}": value for name, value in apart.items()}
    return named


def recipe_of(peer: str, converted: Converted, overrides: Sequence[str]) -> Recipe:
    """The peer's published recipe, what the weights say, then the overrides; later ones win."""
    train = {**PEERS[peer].train, **converted.train}
    # As published: the mirrored image is averaged by none of them but CAL.
    values = {"name": f"imported_{peer}", "train": train, "embed": {"flip": peer == "cal"}}
    return recipes.override(recipes.validate(values), dict(recipes.assignments(overrides)))


def _build(spec: Train, num_classes: int) -> ReidNetwork:
    try:
        return ReidNetwork(spec, num_classes)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"train.backbone {spec.backbone!r} cannot be built with backbone_params "
            f"{spec.backbone_params} for image_size {list(spec.image_size)}: {error}"
        ) from error


def fitted(
    converted: Converted, peer: Peer, spec: Train, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The checkpoint's weights as the whole state of the network that the recipe builds.

    Raises:
        ValueError: If a weight has no place in it, is missing or has another shape.
    """
    given = {name: value.float() for name, value in converted.weights.items()}
    for name, numbers in (("mean", peer.mean), ("std", peer.std)):
        given.setdefault(name, torch.tensor(numbers).view(1, 3, 1, 1))
    given.setdefault("head.weight", torch.zeros_like(state["head.weight"]))
    # Counters that nothing reads, and GeM's fixed exponent.
    defaults = {name for name in state if name.endswith("num_batches_tracked")} | {"pool.p"}
    names = {name: converted.names.get(name, name) for name in given}
    extra = sorted(names[name] for name in given.keys() - state.keys())
    if extra:
        raise ValueError(
            f"has {len(extra)} weights with no place in {_described(spec)}: {some(extra)}"
        )
    missing = sorted(state.keys() - given.keys() - defaults)
    if missing:
        raise ValueError(f"lacks {len(missing)} weights of {_described(spec)}: {some(missing)}")
    for name, tensor in given.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"has {names[name]!r} of shape {list(tensor.shape)}, but {_described(spec)} at "
                f"image size {list(spec.image_size)} needs {list(state[name].shape)}"
            )
    weight_files.check_finite({names[name]: tensor for name, tensor in given.items()})
    return {name: given.get(name, value).to(value.dtype) for name, value in state.items()}


def _described(spec: Train) -> str:
    return f"the backbone {spec.backbone!r} with pooling {spec.pooling!r}"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(
    folder: Path,
    recipe: Recipe,
    identities: Sequence[str],
    weights: Mapping[str, Tensor],
    source: Mapping[str, str],
) -> None:
    """Write aside and rename, so that a package is whole or not there."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    package.save(aside, recipe, identities, weights)
    places.write_text(aside / card.FILE, card.write(recipe, (), imported=source))
    places.write_text(aside / SOURCE, json.dumps(dict(source), indent=2) + "\n")
    aside.rename(folder)
