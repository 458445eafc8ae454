"""Models that nobody has trained for ReID: what any training must beat.

`pretrained:BACKBONE` is the pooled feature map of a backbone with the weights that the recipe names
(`train.pretrained`, `train.ibn_weights`). It comes as a model package, like that of a training.
"""

from typing import TYPE_CHECKING

from ray_reid import places
from ray_reid.models import card
from ray_reid.recipe import recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.job import Job, Work
from ray_reid.training import beginnings, checks, train
from ray_reid.training.outcome import TrainFacts

if TYPE_CHECKING:
    from ray_reid.models.networks import ReidNetwork

PRETRAINED = "pretrained:"
UNTRAINED = (
    "Nobody has trained this model for re-identification: it is the backbone with the weights that "
    "the recipe names (`train.pretrained`, `train.ibn_weights`), and their terms hold."
)
CLASSES = ["none"]
"""Labels of the classifier, which has learned nothing."""
# Each adds a layer before the embedding.
LAYERS = ("head", "embedding_dim", "side_weight", "semantic")


def is_floor(package: str) -> bool:
    """Return whether a package is made of a pretrained backbone, and not read."""
    return package.startswith(PRETRAINED)


def recipe_of(package: str) -> Recipe:
    """Return the recipe of a floor, before it is set which weights the backbone begins with.

    Raises:
        ValueError: If no backbone is named.
    """
    backbone = package.removeprefix(PRETRAINED)
    if not backbone:
        raise ValueError(f"{package!r} names no backbone; give one, as in 'pretrained:resnet50'")
    return recipes.validate(
        {"name": "pretrained", "train": {"backbone": backbone, "pretrained": True}}
    )


def check(recipe: Recipe) -> None:
    """Refuse a backbone that cannot be built, and layers that would stay as drawn at random.

    Raises:
        ValueError: Names the key of the recipe.
    """
    spec = recipe.train
    if not spec.pretrained and spec.ibn_weights is None:
        raise ValueError(
            f"{recipe.package!r} without weights is random: set train.pretrained or "
            "train.ibn_weights"
        )
    for name in LAYERS:
        default = type(spec).model_fields[name].get_default(call_default_factory=True)
        if getattr(spec, name) != default:
            raise ValueError(
                f"train.{name} adds a layer to {recipe.package!r} that nobody has trained; leave it"
            )
    checks.check_network(spec)


def floor_job(work: Work) -> TrainFacts:
    """Write the model package of the backbone alone."""
    from ray_reid.models import package

    recipe = recipes.validate(
        {"name": work.recipe.name, "train": work.recipe.train.model_dump(mode="json")}
    )
    package.save(work.out / "model", recipe, CLASSES, _network(recipe).state_dict())
    places.write_text(work.out / "model" / card.FILE, card.write(recipe, UNTRAINED))
    return TrainFacts(params={"package": work.recipe.package})


def _network(recipe: Recipe) -> "ReidNetwork":
    from ray_reid.models.networks import ReidNetwork

    return ReidNetwork(recipe.train, num_classes=len(CLASSES))


JOB = Job(
    # It takes the place of the training, under whose name others ask for the model.
    train.JOB.name,
    floor_job,
    sections=("name", "package", "train"),
    check=check,
    outside=beginnings.outside,
    uses_ray=False,
    facts=TrainFacts,
)
