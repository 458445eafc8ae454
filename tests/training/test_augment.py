"""Augmentation: what is switched off changes nothing, and a seed decides everything."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from ray_reid.recipe.augment import Augment
from ray_reid.training import rand_augment
from ray_reid.training.augment import augment, blend

NONE = dict.fromkeys(Augment.model_fields.keys() - {"erase_area", "erase_colour"}, 0.0)


def _images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def _with(**changes: Any) -> Augment:
    return Augment.model_validate(NONE | changes)


def test_nothing_switched_on_changes_nothing() -> None:
    images = _images()
    assert torch.equal(augment(images, _with(), (0,)), images)


def test_a_certain_flip_mirrors_every_image() -> None:
    images = _images()
    assert torch.equal(augment(images, _with(flip=1.0), (0,)), images.flip(3))


def test_a_batch_stays_as_it_is_and_keeps_its_layout() -> None:
    images = _images().contiguous(memory_format=torch.channels_last)
    before = images.clone()
    changed = augment(images, _with(flip=0.5, pad=2, erase=1.0), (0,))
    assert torch.equal(images, before)
    assert changed.stride() == images.stride()


def test_a_change_that_is_switched_off_leaves_the_others_as_they_were() -> None:
    images, only = _images(64), _with(flip=0.5, pad=2, erase=0.5)
    still = {"scale": 1e-9, "brightness": 1e-9}
    also = Augment.model_validate(only.model_dump() | still)
    # The warp that moves nothing still rounds.
    assert torch.allclose(augment(images, only, (3,)), augment(images, also, (3,)), atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"pad": 3}, {"pad": 3, "scale": 0.0, "translate": 0.0}])
def test_bytes_are_changed_as_the_floats_that_they_stand_for(changes: dict[str, float]) -> None:
    stored = (_images(8) * 255).to(torch.uint8)
    spec = Augment.model_validate(changes)
    assert torch.equal(augment(stored, spec, (1,)), augment(stored.float() / 255, spec, (1,)))


def test_the_same_seed_gives_the_same_images_and_another_does_not() -> None:
    images, spec = _images(), Augment(rotate=10, hue=0.1)
    first = augment(images, spec, (1, 2, 3))
    assert torch.equal(first, augment(images, spec, (1, 2, 3)))
    assert not torch.equal(first, augment(images, spec, (1, 2, 4)))
    assert first.min() >= 0
    assert first.max() <= 1


def test_erasing_fills_one_rectangle_of_the_stated_area() -> None:
    images = _images(64)
    difference = (augment(images, _with(erase=1.0), (5,)) - images).abs()
    # The warp that moves nothing still rounds.
    changed = (difference > 1e-4).any(dim=1)
    for mask in changed:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert mask.sum() == rows.sum() * columns.sum()
        assert mask.float().mean() <= 0.25 + 3 / 16


def test_erasing_takes_the_area_and_the_colour_that_it_is_told() -> None:
    images, colour = torch.zeros(256, 3, 64, 32), (0.25, 0.5, 0.75)
    changed = augment(images, _with(erase=1.0, erase_area=0.4, erase_colour=colour), (5,))
    erased = changed.any(dim=1)
    shares = erased.float().mean(dim=(1, 2))
    assert 0.3 < shares.max() <= 0.4 + 3 / 32
    assert torch.equal(
        changed.permute(0, 2, 3, 1)[erased], torch.tensor(colour).expand(int(erased.sum()), 3)
    )


def test_an_enlarged_image_is_cropped_to_its_own_size() -> None:
    images, alone = torch.rand(64, 3, 32, 16), _with(enlarge=0.5)
    changed = augment(images, alone, (5,))
    places = set()
    for before, after in zip(images, changed, strict=True):
        larger = F.interpolate(before[None], (36, 18), mode="bilinear", align_corners=False)[0]
        crops = {
            (top, left): larger[:, top : top + 32, left : left + 16]
            for top in range(5)
            for left in range(3)
        }
        found = [place for place, crop in crops.items() if torch.allclose(crop, after)]
        if torch.equal(before, after):
            found = [(-1, -1)]
        assert len(found) == 1
        places.add(found[0])
    assert (-1, -1) in places
    assert len(places) > 8
    # It has numbers of its own: what else is drawn is drawn as without it.
    both = augment(images, _with(enlarge=1e-9, flip=0.5, erase=0.5), (5,))
    assert torch.equal(both, augment(images, _with(flip=0.5, erase=0.5), (5,)))


def test_a_rotated_hue_keeps_greys() -> None:
    grey = _images()[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(augment(grey, _with(hue=0.5), (3,)), grey, atol=1e-5)


def test_contrast_keeps_the_mean_brightness() -> None:
    images = 0.4 + 0.2 * _images()
    changed = augment(images, _with(contrast=0.5), (3,))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    before, after = ((x * weights).sum(dim=1).mean(dim=(1, 2)) for x in (images, changed))
    assert torch.allclose(before, after, atol=1e-5)
    assert not torch.allclose(images, changed, atol=1e-2)


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_a_rotation_turns_pixels_not_the_unit_square(size: tuple[int, int]) -> None:
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = ((y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2) <= 10**2
    disc = centre.float().expand(3, 3, -1, -1)
    turned = augment(disc, _with(rotate=45), (2,))
    assert (turned - disc).abs().mean() < 0.01


def test_padding_then_cropping_shifts_by_at_most_the_padding() -> None:
    images = _images(32)
    cropped = augment(images, _with(pad=2), (5,))
    shifts = set()
    for before, after in zip(images, cropped, strict=True):
        padded = torch.nn.functional.pad(before, [2] * 4)
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.allclose(padded[:, top : top + 16, left : left + 24], after, atol=1e-4)
        ]
        assert len(places) == 1
        shifts.add(places[0])
    assert len(shifts) > 8


def test_a_crop_beyond_the_image_is_black() -> None:
    images = _images(64) + 0.1
    kept = (augment(images, _with(pad=40), (5,)) > 0).float().mean(dim=(1, 2, 3))
    assert kept.min() == 0
    assert 0 < kept.max() <= 1


def test_rand_augment_changes_each_image_by_its_seed_alone() -> None:
    images, spec = _images(8), _with(rand_augment=2, rand_augment_magnitude=15)
    state = torch.get_rng_state()
    first = augment(images, spec, (1,))
    # The generator that the network's dropout uses is left alone.
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, augment(images, spec, (1,)))
    assert not torch.equal(first, augment(images, spec, (2,)))
    assert sum(not torch.allclose(a, b, atol=0.01) for a, b in zip(images, first, strict=True)) > 4


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_operations_of_a_batch_are_those_that_torchvision_does_to_an_image(magnitude: int) -> None:
    names = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color"]
    names += ["Contrast", "Sharpness", "Identity", "Posterize", "Solarize", "AutoContrast"]
    images = (255 * _images(3)).byte()
    theirs = v2.RandAugment()
    operations = [*rand_augment.SIGNED, *rand_augment.UNSIGNED]
    for name, operation in zip([*names, "Equalize"], operations, strict=True):
        strengths, signed = theirs._AUGMENTATION_SPACE[name]
        values = strengths(31, 16, 24)
        for way in (1, -1) if signed else (1,):
            strength = 0.0 if values is None else way * float(values[magnitude])
            expected = torch.stack([
                theirs._apply_image_or_video_transform(
                    image, name, strength, interpolation=theirs.interpolation, fill=theirs._fill
                )
                for image in images
            ])  # fmt: skip
            found = operation(images, way * magnitude / rand_augment.BINS)
            # Strengths in single precision may round to another level.
            assert (found.int() - expected.int()).abs().max() <= 1, name


def test_a_batch_is_changed_by_operations_and_not_by_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def count(operation: rand_augment.Operation, images: torch.Tensor, by: float) -> torch.Tensor:
        calls.append(len(images))
        return operation(images, by)

    for name in ("SIGNED", "UNSIGNED"):
        counted = [partial(count, operation) for operation in getattr(rand_augment, name)]
        monkeypatch.setattr(rand_augment, name, counted)
    augment(_images(512), _with(rand_augment=2), (0,))
    assert sum(calls) == 2 * 512
    assert len(calls) <= 2 * (2 * 9 + 5)


def test_mixup_blends_images_as_it_blends_labels() -> None:
    images, labels = _images(6), torch.arange(6)
    mixed, shares = blend(images, labels, 6, _with(mixup=0.8), (3,))
    assert torch.allclose(shares.sum(dim=1), torch.ones(6))
    # Every image is the mean of the batch's images, weighted with its shares.
    assert torch.allclose(torch.einsum("bc,cijk->bijk", shares, images), mixed, atol=1e-6)
    assert 0 < shares[0].max() < 1


def test_cutmix_pastes_one_box_and_counts_its_area() -> None:
    images, labels = _images(6), torch.arange(6)
    mixed, shares = blend(images, labels, 6, _with(cutmix=1.0), (4,))
    for row in range(6):
        kept = (mixed[row] == images[row]).all(dim=0).float().mean()
        assert kept == pytest.approx(float(shares[row, row]), abs=1e-5)


def test_without_either_a_batch_is_not_blended() -> None:
    images, labels = _images(2), torch.arange(2)
    assert blend(images, labels, 2, _with(), (0,)) == (images, labels)
