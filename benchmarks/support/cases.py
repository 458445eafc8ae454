"""What the benchmarks of training train: a recipe and drawn images for it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_reid import schema, storage
from ray_reid.recipe import recipes
from ray_reid.recipe.augment import Augment
from ray_reid.recipe.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from ray_reid.training.fit import Fit
    from ray_reid.training.loader import TrainingRows

CAMERAS, IMAGES_PER_CAMERA = 2, 2
# One batch of the larger recipe: 16 identities.
MIN_IMAGES = 16 * CAMERAS * IMAGES_PER_CAMERA
# Enough that no loop ends by itself; the clock stops it.
EPOCHS = 1_000_000

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One network on one kind of drawn images."""

    kind: str
    profile: str | None
    backbone: str
    size: Size
    changes: tuple[str, ...] = ()

    def recipe(self, *changes: str) -> Recipe:
        """The recipe `baseline` in this case, with further overrides."""
        own = (
            f"train.backbone={self.backbone}",
            f"train.image_size={list(self.size)}",
            f"train.epochs={EPOCHS}",
        )
        return recipes.load("baseline", self.profile, [*own, *self.changes, *changes])

    def draw(self, table: Path, num_images: int) -> Path:
        """Draw JPEG images of the network's input size into a table."""
        from ray_reid.miniature import street_observations

        drawn = street_observations(
            self.kind,
            num_train=num_images // (CAMERAS * IMAGES_PER_CAMERA),
            num_test=0,
            images_per_camera=IMAGES_PER_CAMERA,
            cameras_per_identity=CAMERAS,
            seed=0,
            size=self.size,
        )
        storage.write(table, schema.observations(list(drawn)))
        return table

    def __str__(self) -> str:
        return f"{self.backbone} {self.size[0]}x{self.size[1]}"


def miniature() -> Case:
    """The network of the drawn world: small, so that everything beside it weighs."""
    return Case("vehicle", "miniature", "resnet10t", (64, 64))


def standard(backbone: str, size: Size) -> Case:
    """The field's usual setting: by default a ResNet-50 on 256 x 128, 32 images a batch.

    Losses and augmentation are the strong baseline's (Luo et al., TMM 2019).
    """
    numbers = Augment.model_fields.keys() - {"erase_area", "erase_colour"}
    augment = dict.fromkeys(sorted(numbers), 0) | {"flip": 0.5, "pad": 10, "erase": 0.5}
    changes = (
        "train.sampler={num_identities: 8, num_instances: 4}",
        f"train.augment={augment}",
        "train.optimizer=adam",
        "train.learning_rate=3.5e-4",
    )
    return Case("pedestrian", None, backbone, size, changes)


def device() -> "torch.device":
    """A GPU where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit_of(recipe: Recipe, table: Path) -> "Fit":
    """Our training of a table, in one process."""
    from ray_reid.training.fit import Fit
    from ray_reid.training.loader import TrainingRows

    return Fit(recipe, TrainingRows([table], recipe.train), device=device())


def opened(fit: "Fit") -> "TrainingRows":
    """The rows of the training, which are decoded on this machine."""
    from ray_reid.training.loader import TrainingRows

    assert isinstance(fit.rows, TrainingRows), "fit_of opens the tables here"
    return fit.rows


def keep_caches_in(directory: Path) -> None:
    """Where this benchmark and what it starts copy the encoded images."""
    os.environ["RAY_REID_CACHE"] = str(directory / "rows")
