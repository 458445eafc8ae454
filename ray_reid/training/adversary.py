"""The classifier of clothes that a network learns to leave helpless (CAL; Gu et al., CVPR 2022).

It stays outside the network and has an optimiser of its own. So it learns before the network
answers it, as the two alternate in CAL's released code; clipping, schedule and loss scaling of the
network do not see it; and neither a next stage nor a model package has it to leave out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ray_reid.recipe.train import Clothes
from ray_reid.training.loader import TrainingLabels
from ray_reid.training.losses import clothes_adversarial

MEASURED = ("clothes", "clothes_accuracy", "adversarial")


class Adversary:
    """Tells the clothes of embeddings apart by cosine, and says how to make that impossible."""

    def __init__(
        self,
        spec: Clothes,
        chosen: TrainingLabels,
        width: int,
        device: torch.device,
        optimize: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        """Begin with random directions, one for the clothes of each identity.

        Args:
            chosen: The rows that are trained on, with the clothes of each.
            width: Of the embeddings.
            optimize: Makes the optimiser of the classifier.
        """
        self.spec = spec
        self.clothes, self.wearers, synthetic = (
            torch.from_numpy(values).to(device)
            for values in (chosen.clothes, chosen.wearers, chosen.synthetic)
        )
        self._real = None if spec.synthetic == "all" or not synthetic.any() else ~synthetic
        directions = torch.empty(len(chosen.wearers), width).uniform_(-1, 1)
        self.directions = nn.Parameter(F.normalize(directions).to(device))
        self.optimizer = optimize([self.directions])

    def compared(self, rows: Tensor) -> Tensor | None:
        """Which of some rows the metric loss compares, (B,) bool; null for all."""
        return None if self._real is None else self._real[rows]

    def begun(self, epoch: int) -> bool:
        """Whether the classifier and the adversarial loss are there yet."""
        return epoch >= self.spec.start_epoch

    def oppose(self, embeddings: Tensor, rows: Tensor, epoch: int) -> dict[str, Tensor]:
        """Let the classifier learn from a batch, or a part of one, then turn it against it.

        Args:
            embeddings: (B, D) with their gradients; of any norm.
            rows: (B,) int64, which rows they are of.

        Returns:
            Scalars: the classifier's cross-entropy `clothes` and its `clothes_accuracy`, both
            before it learned, and the `adversarial` loss, whose gradients are the embeddings'
            alone. Their means over the workers are means over all images there whose clothes are
            learned, 0 if there are none.
        """
        embeddings, clothes = embeddings.float(), self.clothes[rows]
        known = clothes >= 0
        share, clothes = known / _mean_count(known), clothes.clamp(min=0)
        logits = self._logits(embeddings.detach(), self.directions)
        cross_entropy = share @ F.cross_entropy(logits, clothes, reduction="none")
        if self.begun(epoch):
            self._learn(cross_entropy)
        against = self._logits(embeddings, self.directions.detach())
        own = self.wearers == self.wearers[clothes][:, None]
        return {
            "clothes": cross_entropy.detach(),
            "clothes_accuracy": share @ (logits.detach().argmax(dim=1) == clothes).float(),
            "adversarial": share @ clothes_adversarial(against, clothes, own, self.spec.epsilon),
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"directions": self.directions.detach(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        with torch.no_grad():
            self.directions.copy_(state["directions"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _logits(self, embeddings: Tensor, directions: Tensor) -> Tensor:
        return self.spec.scale * F.linear(F.normalize(embeddings), F.normalize(directions))

    def _learn(self, cross_entropy: Tensor) -> None:
        (gradient,) = torch.autograd.grad(cross_entropy, self.directions)
        # The classifiers of the workers stay equal.
        self.directions.grad = _mean_of_workers(gradient)
        self.optimizer.step()


def _mean_count(known: Tensor) -> Tensor:
    """How many images a worker has on average whose clothes are learned; above 0."""
    count = _mean_of_workers(known.sum().float())
    return count + (count == 0)


def _mean_of_workers(values: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()):
        return values
    dist.all_reduce(values)
    return values / dist.get_world_size()
