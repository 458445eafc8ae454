"""Heads by name: what makes features, logits and embeddings of a backbone's maps."""

import inspect
from collections.abc import Callable

from torch import nn

from ray_reid.models.networks.heads.agw import AGW
from ray_reid.models.networks.heads.bdb import BatchDropBlock
from ray_reid.models.networks.heads.bnneck import bnneck, classifier
from ray_reid.models.networks.heads.branches import Branches
from ray_reid.models.networks.heads.mgn import MultipleGranularities
from ray_reid.models.networks.heads.pcb import PartClassifiers
from ray_reid.models.networks.heads.sbs import CosineClassifier
from ray_reid.models.networks.heads.single import SingleHead
from ray_reid.models.networks.heads.vehiclenet import vehiclenet
from ray_reid.recipe.train import Train

HEADS: dict[str, SingleHead | Callable[..., Branches]] = {
    "bnneck": SingleHead(bnneck, classifier),
    "vehiclenet": SingleHead(vehiclenet, classifier),
    "agw": AGW,
    "sbs": SingleHead(bnneck, CosineClassifier, pooling="gem", non_local=True),
    "pcb": PartClassifiers,
    "mgn": MultipleGranularities,
    "bdb": BatchDropBlock,
}


def single(spec: Train) -> SingleHead | None:
    """The head of a recipe if it makes one feature; null if it has branches.

    Raises:
        ValueError: If the recipe asks for what its head has not.
    """
    head = HEADS[spec.head]
    if not isinstance(head, SingleHead):
        return None
    if spec.head_params:
        raise ValueError(
            f"train.head_params {spec.head_params} are none of head {spec.head!r}, which has no "
            "parameters; remove them"
        )
    if head.pooling is not None and spec.pooling not in ("avg", head.pooling):
        raise ValueError(
            f"train.pooling is {spec.pooling!r}, but head {spec.head!r} pools by "
            f"{head.pooling!r}; leave train.pooling out"
        )
    return head


def branches(
    spec: Train, backbone: nn.Module, shape: tuple[int, int, int], num_classes: int
) -> Branches:
    """Build a head that has branches.

    Args:
        spec: The recipe's section.
        backbone: With the weights that it begins with.
        shape: Channels, height and width of its last feature map.
        num_classes: Identities to tell apart.

    Raises:
        ValueError: If the head does not fit the recipe, or a parameter breaks a rule.
    """
    kind = HEADS[spec.head]
    assert not isinstance(kind, SingleHead), "asked for where `single` gives none"
    for name, asked in _refused(spec).items():
        if asked:
            raise ValueError(
                f"train.{name} is set, but head {spec.head!r} has several features of an image, "
                f"and {name} needs one; leave it out, or choose another head"
            )
    signature = inspect.signature(kind).parameters.values()
    known = [one.name for one in signature if one.kind is one.KEYWORD_ONLY]
    for name in spec.head_params:
        if name not in known:
            raise ValueError(
                f"train.head_params has {name!r}, which head {spec.head!r} does not know; choose "
                f"from {known}"
            )
    return kind(spec, backbone, shape, num_classes, **spec.head_params)


def _refused(spec: Train) -> dict[str, bool]:
    """What of a recipe a head with branches cannot have, and whether it is asked for."""
    return {
        "semantic.encoder": spec.semantic.encoder is not None,
        "side_weight": spec.side_weight > 0,
        "pooling": spec.pooling != "avg",
        "neck_bias": spec.neck_bias,
        "loss.auxiliary": spec.loss.auxiliary > 0 and spec.head == "mgn",
    }
