"""fast-reid's stronger baseline (SBS): GeM, non-local blocks, BNNeck, a classifier by cosine.

He et al., "FastReID: A Pytorch Toolbox for General Instance Re-identification", 2020. Its
cross-entropy has the circle loss's margins (Sun et al., CVPR 2020), which `losses.ReidLoss` adds;
with it goes a triplet loss with a soft margin, and a cosine schedule.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class CosineClassifier(nn.Linear):
    """Cosines between embeddings and one learned direction of each identity."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes, bias=False)
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, D) of any norm to (B, classes) in [-1, 1]."""
        # In float32: the margins are small, and so is what half precision leaves of a cosine.
        return F.linear(
            F.normalize(embeddings.float(), dim=1), F.normalize(self.weight.float(), dim=1)
        )
