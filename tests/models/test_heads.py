"""Heads against naive versions of themselves, and what else must work with each of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ray_reid
from ray_reid.models import package
from ray_reid.models.networks import ReidNetwork
from ray_reid.models.networks.heads import HEADS
from ray_reid.models.networks.heads.bdb import BatchDropBlock
from ray_reid.models.networks.nonlocal_blocks import NonLocalBlock
from ray_reid.models.networks.pooling import stripes
from ray_reid.models.onnx_export import Embedding
from ray_reid.recipe import recipes
from ray_reid.recipe.train import Train
from ray_reid.training import optimizers
from ray_reid.training.losses import ReidLoss, pairs_of

WINDOWS = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "resnet50": {"layers": [1, 1, 2, 1]},
    "legacy_seresnet18": {},
    "swin_tiny_patch4_window7_224": WINDOWS,
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 24},
}
PARAMS: dict[str, dict[str, Any]] = {"pcb": {"parts": 4}}


def _spec(head: str, backbone: str = "resnet10t", **more: Any) -> Train:
    params = {} if more.get("ibn") else BACKBONES.get(backbone, {})
    values = {"head_params": PARAMS.get(head, {}), "backbone_params": params, **more}
    return Train(backbone=backbone, head=head, **{"image_size": (128, 64), **values})


def _randomised(network: ReidNetwork) -> ReidNetwork:
    """Let no part hide behind zeros and ones; the backbone and its copies stay as they are."""
    generator = torch.Generator().manual_seed(0)
    kept = ("mean", "std", "backbone", "branches.tails")
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not name.startswith(kept):
            drawn = torch.rand(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                # As large as what comes in.
                drawn = (2 * drawn - 1) * (3 / tensor[0].numel()) ** 0.5
            tensor.copy_(drawn + 0.1 if tensor.ndim < 2 else drawn)
    return network


def _normed(values: Tensor, norm: Any) -> Tensor:
    """A batch norm with its running statistics, spelled out."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (values - norm.running_mean) * scale + norm.bias


def _reduced(pooled: Tensor, reduction: Any) -> Tensor:
    return _normed(pooled @ reduction[0].weight.T, reduction[1]).clamp(min=0)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_trained_and_embeds_on_every_kind_of_backbone(
    head: str, backbone: str
) -> None:
    torch.manual_seed(0)
    network = ReidNetwork(_spec(head, backbone), 3).train()
    *found, embedded = network(torch.rand(4, 3, 128, 64), embeddings=True)
    logits = [one for one in found[1::2] if one is not None]
    assert embedded.shape == (4, network.width)
    assert {tuple(one.shape) for one in logits} == {(4, 3)}
    (sum(one.sum() for one in found if one is not None) + embedded.square().sum()).backward()
    lacking = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    network.eval().replace_classifier(5)
    with torch.inference_mode():
        embeddings = network.embed(torch.rand(2, 3, 128, 64))
        assert network(torch.rand(2, 3, 128, 64))[1].shape == (2, 5)
    assert embeddings.shape == (2, network.width)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-5)


def test_stripes_are_those_of_adaptive_pooling() -> None:
    maps = torch.rand(2, 3, 11, 4)
    for count in (1, 2, 3, 6, 11):
        means = torch.stack([one.mean(dim=(2, 3)) for one in stripes(maps, count)], dim=2)
        assert torch.allclose(means, F.adaptive_avg_pool2d(maps, (count, 1))[..., 0], atol=1e-6)


def test_a_non_local_block_adds_a_mean_over_all_places_weighted_by_likeness() -> None:
    torch.manual_seed(0)
    block = NonLocalBlock(6).eval()
    maps = torch.rand(2, 6, 3, 2)
    assert torch.equal(block(maps), maps)
    nn.init.normal_(block.norm.weight)
    found = block(maps)

    def project(layer: nn.Conv2d, vector: Tensor) -> Tensor:
        return layer.weight[:, :, 0, 0] @ vector + layer.bias

    places = [(row, column) for row in range(3) for column in range(2)]
    for image in range(2):
        for row, column in places:
            asked = project(block.theta, maps[image, :, row, column])
            mixed = torch.zeros(3)
            for r, c in places:
                other = maps[image, :, r, c]
                likeness = asked @ project(block.phi, other)
                mixed = mixed + likeness * project(block.g, other) / len(places)
            expected = maps[image, :, row, column] + _normed(project(block.out, mixed), block.norm)
            assert torch.allclose(found[image, :, row, column], expected, atol=1e-5)


@pytest.mark.parametrize("head", ["agw", "sbs"])
def test_non_local_blocks_follow_the_last_blocks_and_begin_as_nothing(head: str) -> None:
    layers = {"layers": [1, 3, 4, 1]}
    spec = _spec(head, "resnet50", backbone_params=layers)
    network = ReidNetwork(spec, 3).eval()
    assert [block.out.out_channels for block in network.non_local] == [512] * 2 + [1024] * 3
    # The backbone keeps its names, so that others can start from it.
    plain = ReidNetwork(Train(**{**spec.model_dump(), "head": "bnneck", "pooling": "gem"}), 3)
    others = set(network.state_dict()) - set(plain.state_dict())
    assert {name.split(".")[0] for name in others} == {"non_local"}
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k not in others})
    images = torch.rand(2, 3, 128, 64)
    with torch.inference_mode():
        assert torch.allclose(network.embed(images), plain.eval().embed(images), atol=1e-5)
        for block in network.non_local:
            nn.init.constant_(block.norm.weight, 1e-3)
        assert not torch.allclose(network.embed(images), plain.embed(images), atol=1e-5)
        changed = network.feature_map(images)
        # By hand: after which blocks they come.
        maps = network.backbone.maxpool(
            network.backbone.act1(
                network.backbone.bn1(network.backbone.conv1((images - network.mean) / network.std))
            )
        )
        blocks = [*network.backbone.layer1, *network.backbone.layer2, *network.backbone.layer3]
        added = dict(zip((2, 3, 5, 6, 7), network.non_local, strict=True))
        for number, block in enumerate([*blocks, *network.backbone.layer4]):
            hooks, block._forward_hooks = block._forward_hooks, {}
            maps = block(maps)
            block._forward_hooks = hooks
            maps = added[number](maps) if number in added else maps
    assert torch.allclose(changed, maps, rtol=1e-3, atol=1e-4)


def test_the_classifier_of_sbs_gives_cosines() -> None:
    network = ReidNetwork(_spec("sbs"), 3).eval()
    with torch.no_grad():
        images = torch.rand(4, 3, 128, 64)
        features, cosines = network(images)
        embedded = network.neck(features)
    for image in range(4):
        for label in range(3):
            direction = network.head.weight[label]
            expected = embedded[image] @ direction / embedded[image].norm() / direction.norm()
            assert cosines[image, label].item() == pytest.approx(expected.item(), abs=1e-5)
    assert network.cosines
    network.replace_classifier(7)
    assert network.cosines
    assert not ReidNetwork(_spec("agw"), 3).cosines


@pytest.mark.parametrize("descriptor", ["g", "h"])
def test_pcb_has_a_classifier_for_each_stripe(descriptor: str) -> None:
    spec = _spec("pcb", head_params={"parts": 4, "descriptor": descriptor}, embedding_dim=8)
    network = _randomised(ReidNetwork(spec, 3)).eval()
    with torch.inference_mode():
        images = torch.rand(2, 3, 128, 64)
        found, maps = network(images), network.feature_map(images)
        kept = []
        for part in range(4):
            pooled = torch.stack(
                [maps[:, :, part, column] for column in range(maps.shape[3])]
            ).mean(dim=0)
            reduced = _reduced(pooled, network.branches.reductions[part])
            kept.append(pooled if descriptor == "g" else reduced)
            assert found[2 * part] is None
            logits = reduced @ network.branches.classifiers[part].weight.T
            assert torch.allclose(found[2 * part + 1], logits, atol=1e-4)
        expected = torch.cat(kept, dim=1)
        expected = expected / expected.norm(dim=1, keepdim=True)
        assert torch.allclose(network.embed(images), expected, atol=1e-5)
    assert len(found) == 8


def test_mgn_has_three_branches_of_its_own_from_res_conv4_1_on() -> None:
    torch.manual_seed(0)
    spec = _spec("mgn", "resnet50", embedding_dim=8)
    network = _randomised(ReidNetwork(spec, 3)).eval()
    branches, backbone = network.branches, network.backbone
    with torch.inference_mode():
        images = torch.rand(2, 3, 128, 64)
        found, embeddings = network(images), network.embed(images)
        maps = (images - network.mean) / network.std
        for part in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2"):
            maps = getattr(backbone, part)(maps)
        before = backbone.layer3[0](maps)
        whole = [backbone.layer4(backbone.layer3[1](before))]
        whole += [tail[1](tail[0](before)) for tail in branches.tails]
        assert torch.allclose(whole[0], network.feature_map(images), atol=1e-4)
        # The global branch halves its maps once more; the others do not.
        assert [one.shape[2:] for one in whole] == [(4, 2), (8, 4), (8, 4)]
        regions = [*whole, whole[1][:, :, :4], whole[1][:, :, 4:]]
        # Thirds of eight rows overlap.
        regions += [whole[2][:, :, first:last] for first, last in ((0, 3), (2, 6), (5, 8))]
        kept = []
        for number, region in enumerate(regions):
            pooled = region.flatten(2).max(dim=2).values
            reduced = _reduced(pooled, branches.reductions[number])
            kept.append(reduced)
            seen = pooled if number < 3 else reduced
            logits = seen @ branches.classifiers[number].weight.T
            assert torch.allclose(found[2 * number + 1], logits, atol=1e-3)
            if number < 3:
                assert torch.allclose(found[2 * number], reduced, atol=1e-4)
            else:
                assert found[2 * number] is None
        expected = torch.cat(kept, dim=1)
        assert torch.allclose(embeddings, expected / expected.norm(dim=1, keepdim=True), atol=1e-5)
    assert (len(found), network.width) == (16, 8 * 8)


def test_copies_of_the_last_layers_learn_as_the_backbone_does() -> None:
    spec = _spec("mgn", backbone_rate=0.5, finetune={"norms": "statistics"})
    network = ReidNetwork(spec, 3)
    for name, tensor in network.branches.tails[0].state_dict().items():
        own = nn.Sequential(*network.backbone.layer3[1:], network.backbone.layer4)
        assert torch.equal(tensor, own.state_dict()[name])
    groups = optimizers.build(spec, network).param_groups
    share = {id(p): group["share"] for group in groups for p in group["params"]}
    assert {share[id(p)] for p in network.branches.tails.parameters()} == {0.5}
    assert {share[id(p)] for p in network.branches.classifiers.parameters()} == {1.0}
    network.train()
    optimizers.hold_statistics(spec, network, 0)
    norms = [part for part in network.branches.tails.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    frozen = ReidNetwork(_spec("mgn", backbone_rate=0.0), 3)
    optimizers.freeze(_spec("mgn", backbone_rate=0.0), frozen)
    assert not any(p.requires_grad for p in frozen.branches.tails.parameters())


def test_bdb_drops_the_same_rectangle_of_all_images_and_nothing_at_test_time() -> None:
    spec = _spec("bdb", embedding_dim=8, head_params={"height": 0.5, "width": 0.5})
    network = _randomised(ReidNetwork(spec, 3)).eval()
    branches = network.branches
    assert isinstance(branches, BatchDropBlock)
    with torch.inference_mode():
        images = torch.rand(2, 3, 128, 64)
        found, maps = network(images), network.feature_map(images)
        inner = branches.block(maps)

        def expected(seen: Tensor) -> list[Tensor]:
            whole = _reduced(maps.flatten(2).mean(dim=2), branches.whole)
            dropped = _reduced(seen.flatten(2).max(dim=2).values, branches.dropped)
            return [
                whole, whole @ branches.classifiers[0].weight.T,
                dropped, dropped @ branches.classifiers[1].weight.T,
            ]  # fmt: skip

        for one, other in zip(found, expected(inner), strict=True):
            assert torch.allclose(one, other, atol=1e-3)
        joined = torch.cat([found[0], found[2]], dim=1)
        unit = joined / joined.norm(dim=1, keepdim=True)
        assert torch.allclose(network.embed(images), unit, atol=1e-5)
        # Only the drawing is that of a training.
        branches.training = True
        torch.manual_seed(3)
        pairs, _ = branches([maps])
        torch.manual_seed(3)
        mask = branches.mask(4, 2)
        made = [one for pair in pairs for one in pair]
        for one, other in zip(made, expected(inner * mask), strict=True):
            assert torch.allclose(one, other, atol=1e-3)


def test_masks_of_bdb_are_rectangles_everywhere_in_the_map() -> None:
    branches = ReidNetwork(_spec("bdb"), 3).branches
    assert isinstance(branches, BatchDropBlock)
    torch.manual_seed(0)
    tops = set()
    for _ in range(200):
        gone = branches.mask(24, 8) == 0
        rows = gone.any(dim=1).nonzero().flatten().tolist()
        # 0.33 of the rows, over the whole width.
        assert rows == list(range(rows[0], rows[0] + 8))
        assert gone[rows].all()
        tops.add(rows[0])
    assert tops == set(range(17))


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        (
            {"head": "pcb", "image_size": (64, 64)},
            r"'pcb' divides .* into 6 stripes, .* has 2 rows",
        ),
        (
            {"head": "mgn", "image_size": (32, 32)},
            r"'mgn' divides .* into 3 stripes, .* has 2 rows",
        ),
        ({"head": "mgn", "head_params": {"parts": 3}}, r"head_params\.parts is 3, but must be a"),
        ({"head": "pcb", "head_params": {"part": 3}}, r"'part', .* choose from \['parts', 'desc"),
        ({"head": "pcb", "head_params": {"descriptor": "f"}}, r"is 'f'; choose from \['g', 'h'\]"),
        ({"head": "bdb", "head_params": {"height": 2}}, "height is 2, but must be a share from 0"),
        ({"head": "agw", "head_params": {"parts": 3}}, "'agw', which has no parameters; remove"),
        ({"head": "agw", "pooling": "max_avg"}, "pooling is 'max_avg', but head 'agw' pools by"),
        ({"head": "bdb", "side_weight": 1}, r"train\.side_weight is set, but head 'bdb' has sev"),
        ({"head": "mgn", "loss": {"auxiliary": 1}}, r"train\.loss\.auxiliary is set, but head"),
        ({"head": "mgn", "backbone": "densenet121"}, "copies of the backbone's last layers, which"),
    ],
)
def test_a_head_that_does_not_fit_is_one_sentence(spec: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as raised:
        ReidNetwork(Train(**{"backbone": "resnet10t", "image_size": (128, 64), **spec}), 2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("head", [name for name in HEADS if name not in ("bnneck", "vehiclenet")])
def test_a_package_of_every_head_embeds_as_its_network_did(head: str, tmp_path: Path) -> None:
    spec = _spec(head, embedding_dim=16).model_dump(mode="json") | {"precision": "fp32"}
    recipe = recipes.validate({"name": "baseline", "train": spec})
    network = _randomised(ReidNetwork(recipe.train, 3)).eval()
    package.save(tmp_path / "model", recipe, ["s:a", "s:b", "s:c"], network.state_dict())
    model = ray_reid.load(tmp_path / "model", "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 64, 3), dtype=np.uint8)
    found = model.embed(list(pixels), flip=False)
    with torch.inference_mode():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        expected = network.embed(images).numpy()
    assert np.allclose(found, expected, atol=1e-4)
    assert model.activation_maps(list(pixels)).ndim == 3
    loss = ReidLoss(recipe.train.loss, network.cosines)
    with torch.inference_mode():
        told = loss.logits(pairs_of(network(images)))
    scale = recipe.train.loss.softmax_scale if network.cosines else 1.0
    assert np.allclose(model.probabilities(list(pixels)), (scale * told).softmax(1), atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_classifiers_rest_while_clusters_are_learned(head: str) -> None:
    network = ReidNetwork(_spec(head), 1)
    optimizers.freeze(_spec(head, labels="clusters", batches_per_epoch=2), network)
    assert not any(one.requires_grad for one in network.classifiers.parameters())
    assert all(one.requires_grad for one in network.backbone.parameters())


def test_an_auxiliary_classifier_goes_with_the_heads_of_one_map() -> None:
    for head in ("agw", "sbs", "pcb", "bdb"):
        network = ReidNetwork(_spec(head, loss={"auxiliary": 0.5}), 3)
        *_, features, logits = network(torch.rand(2, 3, 128, 64))
        assert (features.shape, logits.shape) == ((2, 256), (2, 3))


@pytest.mark.parametrize("name", ["baseline", "vehicle_diff", "vehiclenet", "clip_senet", "dlcr"])
def test_every_recipe_takes_every_head(name: str) -> None:
    recipe = recipes.load(name, "miniature")
    for head in HEADS:
        changes: dict[str, Any] = {"train.head": head}
        if not recipe.train.backbone_params:
            changes["train.last_stride"] = 1
        changes |= {"train.pooling": "avg", "train.neck_bias": False, "train.embedding_dim": 16}
        if head in ("pcb", "mgn", "bdb"):
            # Their rows are few, and they have no one feature to which others could be added.
            parts: dict[str, Any] = {"pcb": {"parts": 2}, "mgn": {"parts": [2]}}
            changes |= {"train.head_params": parts.get(head, {}), "train.semantic.encoder": None}
            changes["train.side_weight"] = 0
        if head == "mgn":
            changes["train.loss.auxiliary"] = 0
        spec = recipes.override(recipe, changes).train
        network = ReidNetwork(spec, 2).eval()
        with torch.inference_mode():
            embeddings = network.embed(torch.rand(1, 3, *spec.image_size))
        assert embeddings.shape == (1, network.width)


@pytest.mark.parametrize("head", [name for name in HEADS if name not in ("bnneck", "vehiclenet")])
def test_every_head_can_be_traced_for_an_export_of_any_number_of_images(head: str) -> None:
    network = Embedding(_randomised(ReidNetwork(_spec(head, embedding_dim=16), 3))).eval()
    batch = torch.export.Dim("batch", min=1)
    traced = torch.export.export(
        network, (torch.zeros(2, 3, 128, 64),), dynamic_shapes=({0: batch},), strict=False
    ).module()
    for count in (1, 5):
        images = torch.rand(count, 3, 128, 64)
        with torch.no_grad():
            assert torch.allclose(traced(images), network(images), atol=1e-4)
