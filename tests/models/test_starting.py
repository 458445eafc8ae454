"""What a network takes over of the weights that it begins with."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_reid.models.networks import ReidNetwork, starting
from ray_reid.models.networks.starting import Start
from ray_reid.recipe.train import Train


def _spec(**more: Any) -> Train:
    return Train(**{"backbone": "resnet10t", "image_size": (64, 64), **more})


def _start(names: str = "abc", **more: Any) -> Start:
    torch.manual_seed(1)
    spec = _spec(**more)
    network = ReidNetwork(spec, len(names))
    network.mean += 0.25
    return Start(spec, network.state_dict(), list(names))


def _taken(network: ReidNetwork, start: Start) -> set[str]:
    """Parts of which all weights are those that were given."""
    own = network.state_dict()
    parts: dict[str, list[bool]] = {}
    for name, tensor in own.items():
        given = start.weights.get(name)
        same = given is not None and given.shape == tensor.shape and torch.equal(given, tensor)
        parts.setdefault(name.partition(".")[0], []).append(same)
    return {part for part, same in parts.items() if all(same)}


def test_the_same_network_takes_everything_and_its_classifier_for_the_same_identities() -> None:
    start = _start()
    network, begun = starting.begin(_spec(), ["a", "b", "c"], start)
    assert all(torch.equal(start.weights[k], v) for k, v in network.state_dict().items())
    assert (begun.left_out, begun.new) == ({}, {})
    for names in (["a", "b", "d"], ["a", "b"]):
        network, begun = starting.begin(_spec(), names, start)
        assert _taken(network, start) == {"backbone", "mean", "std", "neck"}
        assert begun.left_out == begun.new == {"head": 1}
        assert len(network.head.weight) == len(names)


@pytest.mark.parametrize(
    ("before", "after", "left_out", "new"),
    [
        ({}, {"head": "vehiclenet"}, {"neck": 5, "head": 1}, {"project": 2, "neck": 5, "head": 1}),
        ({}, {"pooling": "gem"}, {"neck": 5, "head": 1}, {"pool": 1, "neck": 5, "head": 1}),
        ({"embedding_dim": 16}, {}, {"project": 1, "neck": 5, "head": 1}, {"neck": 5, "head": 1}),
        ({}, {"loss": {"auxiliary": 0.5}}, {}, {"auxiliary": 6}),
        ({"loss": {"auxiliary": 0.5}}, {}, {"auxiliary": 6}, {}),
    ],
)
def test_another_head_begins_anew_and_the_backbone_carries_over(
    before: dict[str, Any], after: dict[str, Any], left_out: dict[str, int], new: dict[str, int]
) -> None:
    start = _start(**before)
    network, begun = starting.begin(_spec(**after), ["a", "b", "c"], start)
    assert (begun.left_out, begun.new) == (left_out, new)
    assert {"backbone", "mean", "std"} <= _taken(network, start)
    # A new neck is as any neck begins.
    assert set(begun.kept) <= _taken(network, start)


def test_branches_copy_the_layers_that_the_backbone_has_by_then() -> None:
    start = _start()
    network, begun = starting.begin(_spec(head="mgn"), ["a", "b"], start)
    assert set(begun.new) == {"branches"}
    own = network.backbone.layer4.state_dict()
    for tail in network.branches.tails:
        for name, tensor in tail[-1].state_dict().items():
            assert torch.equal(tensor, own[name])
            assert torch.equal(tensor, start.weights[f"backbone.layer4.{name}"])
    # And branches that were trained are kept.
    trained = Start(_spec(head="mgn"), network.state_dict(), ["a", "b"])
    torch.nn.init.zeros_(trained.weights["branches.tails.0.0.0.conv1.weight"])
    again, begun = starting.begin(_spec(head="mgn"), ["a", "b"], trained)
    assert (begun.left_out, begun.new) == ({}, {})
    assert not again.branches.tails[0][0][0].conv1.weight.any()


def test_a_network_of_several_branches_gives_its_backbone_to_another() -> None:
    start = _start(head="pcb", head_params={"parts": 2})
    assert start.num_classes == 3
    network, begun = starting.begin(_spec(head="bdb"), ["a", "b"], start)
    assert _taken(network, start) == {"backbone", "mean", "std"}
    assert begun.left_out.keys() == begun.new.keys() == {"branches"}


def test_another_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^does not fit the backbone 'resnet18': \d+ are missing"):
        starting.begin(_spec(backbone="resnet18"), ["a"], _start())


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    start = _start()
    starting.save(start, tmp_path / "start.pt")
    found = starting.parse(torch.load(tmp_path / "start.pt", weights_only=True))
    assert (found.spec, found.identities) == (start.spec, start.identities)
    assert all(torch.equal(found.weights[name], one) for name, one in start.weights.items())
