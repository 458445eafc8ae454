"""The part of a recipe that says what is trained and how."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ray_reid.recipe import clusters, keys
from ray_reid.recipe.augment import Augment
from ray_reid.recipe.base import Frozen, ImageSide
from ray_reid.recipe.clusters import Clusters
from ray_reid.recipe.finetune import Finetune
from ray_reid.recipe.sampler import Sampler


class Loss(Frozen):
    """Cross-entropy on the head plus a metric loss on the features."""

    label_smoothing: float = Field(0.1, ge=0, lt=1)
    metric: Literal["triplet", "soft_triplet", "weighted_triplet", "circle", "supcon", "none"] = (
        "triplet"
    )
    """`soft_triplet` has a soft margin (Hermans et al., 2017); `weighted_triplet` is AGW's."""
    weight: float = Field(1.0, ge=0)
    """Weight of the metric loss."""
    softmax_margin: float = Field(0.35, ge=0, lt=1)
    """Margin m of the circle loss's cross-entropy, on cosines: of the head `sbs` alone."""
    softmax_scale: float = Field(64.0, gt=0)
    """Its scale."""
    auxiliary: float = Field(0.0, ge=0)
    """Weight of the same losses on an auxiliary classifier, which sees the backbone's last but
    one feature map (Vehicle-Diff, section III-D); 0 builds none."""
    margin: float = Field(0.3, gt=0)
    """Margin of the triplet (distance) or circle (similarity) loss."""
    gamma: float = Field(64.0, gt=0)
    """Scale of the circle loss."""
    temperature: float = Field(0.1, gt=0)
    """Of the supcon loss (Khosla et al., 2020); lower weighs the nearest images more."""
    gather: bool = False
    """Whether the metric loss compares the images of all workers, not of each by itself."""


class Clothes(Frozen):
    """The clothes-based adversarial loss, against features that know clothes (CAL)."""

    weight: float = Field(0.0, ge=0)
    """Weight of the loss, 1 in CAL (Gu et al., CVPR 2022); 0 builds no classifier of clothes."""
    scale: float = Field(16.0, gt=0)
    """Of the classifier's cosines."""
    epsilon: float = Field(0.1, ge=0, le=1)
    """Share of the target that all clothes of an identity have in common; the rest is that of the
    clothes which the image shows."""
    start_epoch: int = Field(0, ge=0)
    """First epoch of the classifier and of the loss, counted from 0; 25 of 60 in CAL."""
    classifier_rate: float = Field(1.0, gt=0)
    """The classifier's share of the learning rate; it has neither warm-up nor schedule."""
    synthetic: Literal["identity_only", "all"] = "identity_only"
    """Losses of the generated images: the cross-entropy of identities alone (DLCR), or the metric
    loss and those of clothes too."""


class Semantic(Frozen):
    """What an image-text model sees, beside the backbone (CLIP-SENet, sections III-B and III-C)."""

    encoder: str | None = None
    """Its image encoder: `miniature:NAME`, a folder, a hub id of transformers (`hf-hub:` before
    it for open_clip), or `NAME/PRETRAINED` of open_clip's own list; null builds none."""
    width: int = Field(2048, ge=8)
    """Width of the fused feature f_fuse."""
    groups: int | None = Field(32, ge=1)
    """Groups of the adaptive fine-grained enhancement (AFEM), a divisor of the encoder's width;
    null leaves it out."""
    group_weights: Literal["group", "element"] = "group"
    """What AFEM learns: one weight for a whole group, or one for each of its elements, which makes
    any number of groups the same network."""
    join: Literal["add", "concatenate"] = "add"
    """How AFEM's output meets f_fuse: projected to its width and added, or put beside it."""


class TrainStage(Frozen):
    """One of several trainings in a row."""

    name: str = Field(pattern=r"[A-Za-z0-9][\w.-]*")
    changes: dict[str, Any] = Field(default_factory=dict)
    """Keys of `train`, dotted where they lie deeper, and what they are in this stage."""


class Train(Frozen):
    """Images and labels to a model package."""

    stages: tuple[TrainStage, ...] = ()
    """Trainings one after the other, each from the weights of the one before, with classifiers of
    its own (VehicleNet, section III-C); empty is a single one."""
    sources: tuple[str, ...] = ()
    """Names of the sources to train on; empty takes all."""
    target: Literal["identity", "camera"] = "identity"
    """What is learned to be told apart. `camera` makes the classifier of `embed.camera_model`:
    images without a camera are left out, and the package's labels are cameras."""
    labels: Literal["given", "clusters"] = "given"
    """What tells images apart: identities, or clusters that are found anew before every epoch."""
    clusters: Clusters = Clusters()

    backbone: str = "resnet18"
    """Any timm model name."""
    pretrained: bool | Annotated[str, Field(min_length=1)] = False
    """Weights that the backbone begins with: `true` takes timm's, from the hub or its local cache;
    else a reference: a file, a folder, a model package of ours, `package:NAME` or a hub id."""
    start: Annotated[str, Field(min_length=1)] | None = None
    """What the whole network begins with, its head included where it fits: a run (the package of
    its job `train`), a model package, or `pretrain`, the result of this run's own pre-training."""
    backbone_params: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model."""
    ibn: Literal["a"] | None = None
    """IBN-a in a residual backbone (Pan et al., 2018); with `pretrained` the norms that it splits
    keep their weights."""
    ibn_weights: str | None = None
    """File of the weights that IBN-Net's authors publish, `.pth` or `.safetensors`."""
    last_stride: Literal[1, 2] = 2
    """Stride of a ResNet's last stage; 1 doubles the feature map without the dilation that timm's
    `output_stride: 16` brings (the strong baseline; Luo et al., 2019)."""
    stem_pool: Literal["padded", "ceil"] = "padded"
    """First max-pooling of a ResNet: timm's, or fast-reid's, which has no padding."""
    window_pad: Literal["after_shift", "before_shift"] = "after_shift"
    """When a Swin transformer pads its maps to whole windows: as timm does, or as SOLIDER."""
    pooling: Literal["avg", "gem", "max_avg", "token"] = "avg"
    """`token` takes the class token of a vision transformer."""
    semantic: Semantic = Semantic()
    head: Literal["bnneck", "vehiclenet", "agw", "sbs", "pcb", "mgn", "bdb"] = "bnneck"
    """What makes features, logits and embeddings of the backbone's maps (docs/networks.md)."""
    head_params: dict[str, Any] = Field(default_factory=dict)
    """Arguments of a head with branches: `parts` of pcb and mgn, `height` of bdb, and others."""
    neck_bias: bool = False
    """Whether BNNeck's shift is learned, as in CAL's network; the strong baseline holds it at 0."""
    embedding_dim: int | None = Field(None, ge=8)
    """Width of the embedding; null keeps the backbone's, or with `vehiclenet` takes 512. Of a head
    with branches it is that of one part: null takes 256, or with `bdb` 512."""
    side_weight: float = Field(0.0, ge=0)
    """Weight of a learned vector per camera and view, which is added to the feature (TransReID);
    0 builds none."""
    image_size: tuple[ImageSide, ImageSide] = (64, 64)
    """Height and width of the network's input in pixels."""
    sampler: Sampler = Sampler()
    augment: Augment = Augment()
    loss: Loss = Loss()
    clothes: Clothes = Clothes()
    mixing: Literal["real", "synthetic", "shuffled", "balanced"] = "real"
    """Which images are trained on. Of both kinds, `shuffled` (D of Vehicle-Diff) draws identities
    regardless of origin; `balanced` (B) fills half of every batch with either."""
    real_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the real training images that is used (Vehicle-Diff, Fig. 5); a smaller share is
    part of every larger one."""
    real_fraction_of: Literal["identities", "images", "images_of_each"] = "identities"
    """What is left out: identities, images of any identity (one may lose all of its own), or so
    many of each identity's images, of which one at least is kept (few-shot)."""
    synthetic_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the synthetic images that is used, taken from every identity (Table VII)."""
    synthetic_fraction_of: Literal["images_of_each", "identities"] = "images_of_each"
    """What is left out: so many of each identity's images, or whole identities."""
    fraction_seed: int = Field(0, ge=0)
    """Draws the shares: one seed's smaller share is part of its larger ones."""
    synthetic_of: Literal["kept", "all", "random"] = "kept"
    """Which of the generated images that are drawn are trained on: those that the filters kept,
    all of them, or as many as were kept but at random, whatever the filters said."""
    synthetic_filters: tuple[str, ...] | None = None
    """Filters of the recipe whose verdicts decide what is kept; null asks all of them. One stream
    with all filters is thus the pool of a comparison (Diffusion-ReID, section 3.2)."""
    synthetic_images: int | None = Field(None, ge=1)
    """Generated images that are drawn, dropped ones among them; fewer are part of more. null draws
    all that were made."""
    synthetic_draw: int = Field(0, ge=0)
    """Seed of the order in which they are drawn."""
    validation: float = Field(0.0, ge=0, le=0.5)
    """Share of the real training identities (of the last stage's sources) that no stage trains on;
    their real images are searched among each other after each epoch. 0 holds out none."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights the next stage and the model package take: that of the validation with
    the highest mAP, the earlier of equal ones, or the last. Without a validation it is the last."""
    epochs: int = Field(12, ge=1)
    batches_per_epoch: int | None = Field(None, ge=1)
    """Batches of an epoch, so that trainings on unlike amounts of data take equally many steps;
    null passes over the images `repeats` times."""
    repeats: int = Field(1, ge=1)
    """Passes over the images in one epoch: fewer, longer epochs for small sets."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    backbone_rate: float = Field(1.0, ge=0)
    """The backbone's share of the learning rate; below 1 where it brings weights of its own."""
    semantic_rate: float = Field(1.0, ge=0)
    """The semantic encoder's share of the learning rate; 0 keeps it as it is. CLIP-ReID trains its
    image encoder at a rate of 5e-6, which at a `learning_rate` of 3.5e-4 is a share of 0.014."""
    finetune: Finetune = Finetune()
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(5e-4, ge=0)
    decay_biases: bool = False
    """Whether the weight decay takes biases and norms too, as PyTorch's optimisers do by themselves
    and so CAL; else matrices and kernels alone."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Linear warm-up, stepped every batch; then the schedule."""
    schedule: Literal["cosine", "multistep"] = "cosine"
    """A cosine to zero, stepped every batch; or `decay` at each of the milestones."""
    milestones: tuple[float, ...] = ()
    """Epochs after which the learning rate of `multistep` is multiplied with `decay`."""
    decay: float = Field(0.1, gt=0, lt=1)
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; a larger one is scaled down to it."""
    accumulate: int = Field(1, ge=1)
    """Parts of a worker's batch that are computed one after the other, for want of memory. A
    metric loss and batch norm see one part at a time; an identity is never divided."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of autocast; auto takes bf16 where the hardware multiplies it natively."""
    channels_last: bool = True
    """Pixels of an image side by side, not its channels: what most hardware convolves faster."""
    compile: bool = False
    """torch.compile the network; its first batches take minutes."""
    num_workers: int = Field(1, ge=1)
    """Workers of Ray Train; the batch is shared among them."""
    cpus_per_worker: float = Field(1.0, gt=0)
    use_gpu: bool = False
    loader_processes: int = Field(0, ge=0)
    """Processes that decode images beside each worker; 0 decodes in the worker."""
    loader: Literal["local", "ray_data"] = "local"
    """Who decodes the planned images: each worker's own cores, or any free CPUs of the cluster
    through Ray Data. The batches are the same; trainings in one process are always local."""
    checkpoint_batches: int | None = Field(None, ge=1)
    """Also checkpoint every so many batches; null does at the end of each epoch only."""
    max_failures: int = Field(2, ge=0)
    """Restarts after a lost worker, from the last checkpoint."""

    def trainings(self) -> list[tuple[str, "Train"]]:
        """Every stage by name, as a training of its own; without stages this one alone.

        Raises:
            ValueError: If a stage breaks a rule, or would need another network.
        """
        found = []
        for number, stage in enumerate(self.stages):
            shared = sorted(NETWORK & {key.partition(".")[0] for key in stage.changes})
            if shared:
                raise ValueError(
                    f"stage {stage.name!r} changes {shared[0]!r}, but all stages train one network "
                    f"of which one may change {[*HEAD, 'loss']}"
                )
            if "validation" in stage.changes:
                raise ValueError(
                    f"stage {stage.name!r} changes 'validation', but all stages hold out the same "
                    "identities; set it beside the stages"
                )
            values = self.model_dump(mode="json") | {"stages": []}
            for key, value in stage.changes.items():
                keys.assign(values, key, value)
            if number:
                # The weights come from the stage before.
                values |= {"pretrained": False, "ibn_weights": None, "start": None}
            try:
                found.append((stage.name, Train.model_validate(values)))
            except ValidationError as error:
                raise ValueError(f"stage {stage.name!r}: {keys.sentence(error, Train)}") from error
        return found or [("", self)]

    @model_validator(mode="after")
    def _stages_can_be_trained(self) -> "Train":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages {names} need names of their own")
        if self.stages:
            self.trainings()
        return self

    @model_validator(mode="after")
    def _backbone_is_a_name(self) -> "Train":
        if "/" in self.backbone or ":" in self.backbone:
            raise ValueError(
                f"backbone {self.backbone!r} is no name of a network in timm; name one, such as "
                "resnet50, and give a file, folder or hub id of its weights as pretrained"
            )
        return self

    @model_validator(mode="after")
    def _head_is_trained_alone(self) -> "Train":
        if self.finetune.head_epochs >= self.epochs:
            raise ValueError(
                f"finetune.head_epochs {self.finetune.head_epochs} must be less than epochs "
                f"{self.epochs}, or the backbone never learns; set backbone_rate to 0 for that"
            )
        return self

    @model_validator(mode="after")
    def _filters_are_asked(self) -> "Train":
        if self.synthetic_filters is None:
            return self
        if not self.synthetic_filters:
            raise ValueError("synthetic_filters [] asks no filter; synthetic_of 'all' does that")
        if self.synthetic_of == "all":
            raise ValueError(
                f"synthetic_filters {list(self.synthetic_filters)} with synthetic_of 'all', which "
                "asks no filter; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _target(self) -> "Train":
        if self.target == "camera" and self.validation:
            raise ValueError(
                f"validation {self.validation:g} searches identities, which a training with target "
                "'camera' does not learn; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _clusters_can_be_learned(self) -> "Train":
        clusters.check(self)
        return self

    @model_validator(mode="after")
    def _schedule(self) -> "Train":
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError(
                f"milestones {list(self.milestones)} with schedule {self.schedule!r}: "
                "multistep needs milestones, and nothing else has them"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} must increase")
        return self

    @model_validator(mode="after")
    def _mixing_labels(self) -> "Train":
        mixed = self.augment.mixup or self.augment.cutmix
        if mixed and self.loss.metric != "none":
            raise ValueError(
                f"augment.mixup and cutmix blend labels, which loss.metric {self.loss.metric!r} "
                "cannot compare; set it to none"
            )
        return self

    @model_validator(mode="after")
    def _clothes_can_be_learned(self) -> "Train":
        if not self.clothes.weight:
            return self
        weight = f"clothes.weight {self.clothes.weight:g}"
        if self.target == "camera":
            raise ValueError(
                f"{weight} needs identities, which a training with target 'camera' does not "
                "learn; set it to 0"
            )
        if self.augment.mixup or self.augment.cutmix:
            raise ValueError(f"{weight} needs whole clothes, which mixup and cutmix blend; set 0")
        if self.clothes.start_epoch >= self.epochs:
            raise ValueError(
                f"clothes.start_epoch {self.clothes.start_epoch} must be less than epochs "
                f"{self.epochs}, or its loss never begins"
            )
        return self

    @model_validator(mode="after")
    def _batches_can_be_made(self) -> "Train":
        self.sampler.check_workers(
            self.num_workers, self.accumulate, alone=self.loss.metric == "none" or self.loss.gather
        )
        self.sampler.check_mixing(self.mixing)
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> "Train":
        if self.ibn_weights is not None and (self.ibn is None or self.pretrained):
            raise ValueError(
                f"ibn_weights {self.ibn_weights!r} need ibn 'a' and pretrained false, but they are "
                f"{self.ibn!r} and {str(self.pretrained).lower()}"
            )
        if self.start is not None and (self.pretrained or self.ibn_weights is not None):
            name = "pretrained" if self.pretrained else "ibn_weights"
            raise ValueError(
                f"start {self.start!r} brings the weights of the whole network, and {name} "
                f"{self.pretrained or self.ibn_weights!r} those of the backbone; set one of them"
            )
        return self


HEAD = ("head", "head_params", "pooling", "neck_bias", "embedding_dim")
"""Entries that make the head: where a stage changes one, its head begins anew."""
# What makes the rest of the network: the same in all stages.
NETWORK = frozenset({
    "stages", "start", "backbone", "backbone_params", "ibn", "ibn_weights", "pretrained",
    "semantic", "side_weight", "image_size", "last_stride", "stem_pool", "window_pad",
})  # fmt: skip
