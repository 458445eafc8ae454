"""The Frechet distance against closed forms, and the extractors that feed it."""

import importlib.util

import numpy as np
import pytest
import scipy.linalg

from ray_reid import pipelines
from ray_reid.generation.frechet import extractor, frechet_distance
from ray_reid.recipe import recipes
from ray_reid.recipe.frechet import Frechet


def _with_moments(chance, count, mean, deviation):
    """Samples whose mean and (diagonal) covariance are exactly those asked for."""
    drawn = chance.standard_normal((count, len(mean)))
    centred = drawn - drawn.mean(axis=0)
    white, _ = np.linalg.qr(centred)
    return white * np.sqrt(count - 1) * deviation + mean


def test_it_is_the_closed_form_of_two_gaussians_with_diagonal_covariances():
    chance = np.random.default_rng(0)
    means = np.array([[0.0, 1, 2, -3], [1.0, 1, 0, 4]])
    deviations = np.array([[1.0, 0.5, 2, 0], [3.0, 0.5, 0, 1]])
    a, b = (
        _with_moments(chance, n, *pair)
        for n, *pair in zip((40, 70), means, deviations, strict=True)
    )
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("counts", [(9, 12), (60, 4), (80, 90)])
def test_it_agrees_with_the_matrix_square_root_of_scipy(counts):
    chance = np.random.default_rng(1)
    a, b = (chance.standard_normal((n, 6)) @ chance.standard_normal((6, 6)) for n in counts)
    covariance = [np.cov(features, rowvar=False) for features in (a, b)]
    # Of singular matrices scipy warns and may leave an imaginary trace; its real part is meant.
    root = scipy.linalg.sqrtm(covariance[0] @ covariance[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(covariance[0] + covariance[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(5, 64), (200, 8)])
def test_equal_sets_are_at_distance_zero_in_any_order_and_moved_ones_at_the_square(shape):
    chance = np.random.default_rng(2)
    features = chance.standard_normal(shape).astype(np.float32)
    assert 0 <= frechet_distance(features, features) < 1e-9
    assert frechet_distance(features, features[::-1]) < 1e-9
    moved = features.astype(np.float64) + 3
    assert frechet_distance(features, moved) == pytest.approx(9 * shape[1], rel=1e-6)
    other = chance.standard_normal(shape)
    there, back = frechet_distance(features, other), frechet_distance(other, features)
    assert there == pytest.approx(back, rel=1e-9)


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 3\) have no covariance"):
        frechet_distance(np.ones((1, 3)), np.ones((5, 3)))
    with pytest.raises(ValueError, match="3 and 4 columns must be equally wide"):
        frechet_distance(np.ones((5, 3)), np.ones((5, 4)))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.ones((5, 3)), np.full((5, 3), np.nan))


def test_an_unknown_extractor_is_named_with_the_choices_before_anything_runs(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"unknown frechet\.extractor 'incepton'; choose from"):
        extractor(Frechet(extractor="incepton"), "miniature:image_text")
    with pytest.raises(ValueError, match=r"unknown frechet\.extractor 'incepton'; choose from"):
        pipelines.run(
            recipes.load("vehicle_diff", "miniature", ["frechet.extractor=incepton"]), run
        )
    assert not run.exists()


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is not None, reason="the package is installed"
)
def test_without_the_package_inception_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"needs the package .* install 'ray-reid\[fid\]'"):
        extractor(Frechet(extractor="inception"), "")


def test_weights_that_are_missing_or_none_are_named(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(ValueError, match=r"cannot read weights .*none\.pth': No such file"):
        extractor(Frechet(extractor=f"inception:{tmp_path / 'none.pth'}"), "")
    (tmp_path / "text.pth").write_text("these are no weights")
    with pytest.raises(ValueError, match="not a file of weights"):
        extractor(Frechet(extractor=f"inception:{tmp_path / 'text.pth'}"), "")
    import torch

    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no weights of Inception-v3 in '.*other\.pth'"):
        extractor(Frechet(extractor=f"inception:{tmp_path / 'other.pth'}"), "")


def test_inception_takes_images_of_any_size_and_gives_the_published_width(tmp_path):
    pytest.importorskip("torchmetrics")
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    import torch

    class Untrained(library.FeatureExtractorInceptionV3):
        """Keeps its random weights, where the library insists on loading some."""

        def load_state_dict(self, *_, **__):
            return None

    file = tmp_path / "weights.pth"
    torch.save({}, file)
    torch.manual_seed(0)
    torch.save(Untrained("none", ["2048"], str(file)).state_dict(), file)
    extract = extractor(Frechet(extractor=f"inception:{file}"), "")
    chance = np.random.default_rng(0)
    pictures = [chance.integers(0, 255, (*size, 3), np.uint8) for size in ((64, 64), (90, 40))]
    features = extract(pictures)
    assert features.shape == (2, 2048)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert not np.allclose(features[0], features[1])
    assert np.array_equal(extract(pictures[1:])[0], features[1])
