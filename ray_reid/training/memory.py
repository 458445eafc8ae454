"""The memory of clusters: a unit vector for each, and the loss that compares images with all."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_reid.training.losses import gather


class ClusterMemory:
    """Contrast of images with clusters (ClusterNCE; Dai et al., ACCV 2022).

    The loss of an image is -log softmax(f . c / temperature) at its own cluster, over the vectors c
    of all clusters. Every image that was trained on then moves the vector of its cluster to
    momentum * c + (1 - momentum) * f, which is made a unit vector again, one image after another.
    """

    def __init__(self, vectors: Tensor, temperature: float, momentum: float) -> None:
        """Begin with (C, D) unit vectors."""
        self.vectors = vectors
        """(C, D) of unit norm."""
        self._temperature, self._momentum = temperature, momentum

    def compare(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compare a batch with all clusters.

        Args:
            embeddings: (B, D) of any norm.
            labels: (B,) int64, the clusters of the images.

        Returns:
            The mean loss, and (B, C) logits.
        """
        logits = F.normalize(embeddings.float(), dim=1) @ self.vectors.T / self._temperature
        return F.cross_entropy(logits, labels), logits

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Move the clusters of a batch towards its images, those of all workers in their order."""
        features, labels = gather(F.normalize(embeddings.detach().float(), dim=1), labels)
        # A copy: the loss of the batch still needs the vectors that it was computed with.
        vectors = self.vectors.clone()
        for turn in _turns(labels):
            own = labels[turn]
            moved = self._momentum * vectors[own] + (1 - self._momentum) * features[turn]
            vectors[own] = F.normalize(moved, dim=1)
        self.vectors = vectors


def _turns(labels: Tensor) -> list[Tensor]:
    """Rows whose labels differ: the first images of all clusters, then the second ones."""
    order = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    # Of each image the number of those before it that have its label.
    place = torch.arange(len(labels), device=labels.device) - starts[labels[order]]
    return [order[place == turn] for turn in range(int(counts.max()))]
