"""Models of open_clip: one way from a reference to a model with its weights.

Image-text models and image encoders are loaded here, so that both refuse the same references.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray_reid.models.pretrained import references
from ray_reid.models.pretrained.references import UnfitReferenceError

QUICK = "-quickgelu"
"""Ends the names of open_clip's models that are built with QuickGELU as well as with GELU."""


def load(reference: str) -> tuple[Any, Callable[..., Any], str]:
    """Load a model with its weights on the CPU, its preprocessing and open_clip's name for it.

    Args:
        reference: `miniature:NAME`, a folder, a hub id, or `NAME/PRETRAINED` of open_clip's list.

    Raises:
        UnfitReferenceError: See `check`; other errors are those of open_clip.
    """
    import open_clip

    check(reference)
    named = split(reference)
    if named is not None:
        name, pretrained = named
    else:
        found, pretrained = references.resolve(reference.removeprefix(references.HUB)), ""
        name = f"local-dir:{found}" if Path(found).is_dir() else f"{references.HUB}{found}"
    model, preprocess = open_clip.create_model_from_pretrained(name, pretrained or None)
    return model, preprocess, name


def check(reference: str) -> None:
    """Refuse a model that is not there, and weights that another model was trained to.

    open_clip builds the activation that a name stands for and only warns where the weights were
    trained with the other one; their embeddings are then wrong without any other sign.

    Raises:
        UnfitReferenceError: If there is no such model, or its weights need another activation.
    """
    named = split(reference)
    if named is None:
        references.locate(reference.removeprefix(references.HUB))
    elif not Path(named[1]).is_file():
        _check_listed(*named)


def split(reference: str) -> tuple[str, str] | None:
    """Name and weights of a model of open_clip's own list; None for any other reference."""
    name, slash, pretrained = reference.partition("/")
    if not slash or name.startswith((references.MINIATURE, references.HUB)):
        return None
    # Here, because it takes seconds, and most references do not need it.
    import open_clip

    return (name, pretrained) if name in open_clip.list_models() else None


def _check_listed(name: str, pretrained: str) -> None:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        raise UnfitReferenceError(
            f"open_clip has no weights {pretrained!r} of {name!r}; choose from {tags}"
        )
    weights = open_clip.get_pretrained_cfg(name, pretrained)
    trained, built = _activation(weights), _activation(open_clip.get_model_config(name))
    if trained != built:
        raise UnfitReferenceError(
            f"the weights {pretrained!r} were trained with {trained}, but open_clip builds "
            f"{name!r} with {built}; {_advice(name, pretrained, trained)}"
        )
    # An organisation and a repository, perhaps a file; weights of some tags lie elsewhere.
    if repository := "/".join(weights.get("hf_hub", "").split("/")[:2]):
        references.knock(repository)


def _advice(name: str, pretrained: str, activation: str) -> str:
    """The same weights in a model of their activation, or other weights for the same model."""
    import open_clip

    for other in (f"{name}{QUICK}", name.removesuffix(QUICK)):
        config = open_clip.get_model_config(other)
        tags = open_clip.list_pretrained_tags_by_model(other)
        if config is not None and pretrained in tags and _activation(config) == activation:
            return f"choose {f'{other}/{pretrained}'!r}"
    built = _activation(open_clip.get_model_config(name))
    fitting = [
        f"{name}/{tag}"
        for tag in open_clip.list_pretrained_tags_by_model(name)
        if _activation(open_clip.get_pretrained_cfg(name, tag)) == built
    ]
    return f"choose from {fitting}" if fitting else "give a folder or a hub id of another model"


def _activation(settings: Mapping[str, Any]) -> str:
    return "QuickGELU" if settings.get("quick_gelu") else "GELU"
