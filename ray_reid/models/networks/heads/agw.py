"""AGW: non-local blocks in the backbone, GeM pooling and BNNeck (Ye et al., TPAMI 2021).

"Deep Learning for Person Re-identification: A Survey and Outlook". The third part of its name,
the weighted regularised triplet loss, is `loss.metric: weighted_triplet`; the backbone's last
stage keeps the size of its maps (`last_stride: 1`). At test time the embedding is the feature after
the neck.
"""

from ray_reid.models.networks.heads.bnneck import bnneck, classifier
from ray_reid.models.networks.heads.single import SingleHead

AGW = SingleHead(bnneck, classifier, pooling="gem", non_local=True)
