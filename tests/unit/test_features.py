"""Newness of vectors, against matrices that are really inverted."""

import numpy as np
import pytest
import torch

from stages.novelty import elliptical_order, leverages, sparse_projection


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(("samples", "dimensions", "ridge"), [(8, 4, 0.01), (8, 16, 0.01), (16, 5, 1.0), (2, 1, 0.1)])
def test_leverages_are_those_of_the_inverted_covariance(samples: int, dimensions: int, ridge: float) -> None:
    features = normal(samples, dimensions) + 3
    centred = features - features.mean(dim=0)
    inverse = torch.linalg.inv(ridge * torch.eye(dimensions, dtype=torch.float64) + sum(torch.outer(h, h) for h in centred))
    expected = torch.stack([h @ inverse @ h for h in centred])
    torch.testing.assert_close(leverages(features, ridge), expected, rtol=1e-9, atol=1e-12)
    assert ((expected >= 0) & (expected <= 1)).all()


@pytest.mark.parametrize(("samples", "dimensions", "ridge"), [(12, 4, 0.01), (12, 30, 0.01), (20, 6, 1.0)])
def test_samples_are_picked_as_by_inverting_anew_after_each_pick(samples: int, dimensions: int, ridge: float) -> None:
    features = normal(samples, dimensions) + 1
    picked: list[int] = []
    for _ in range(samples):
        covariance = ridge * torch.eye(dimensions, dtype=torch.float64) + features[picked].T @ features[picked]
        newness = torch.einsum("id,de,ie->i", features, torch.linalg.inv(covariance), features)
        newness[picked] = -torch.inf
        picked.append(int(newness.argmax()))
    assert elliptical_order(features, ridge).tolist() == picked


def test_repetitions_are_picked_last() -> None:
    different = normal(5, 8)
    order = elliptical_order(torch.cat([different[:1].repeat(10, 1), different[1:]]), 0.01).tolist()
    assert set(order[:5]) & set(range(10, 14)) == set(range(10, 14))


def test_as_many_dimensions_as_samples_make_every_leverage_the_same() -> None:
    features = normal(8, 64)
    np.testing.assert_allclose(leverages(features, 1e-6), 1 - 1 / 8, atol=1e-3)
    assert leverages(features @ sparse_projection(64, 4, [0]), 1e-6).std() > 0.05


def test_a_projection_keeps_squared_lengths_in_expectation_and_is_drawn_by_its_seed() -> None:
    features = normal(50, 96)
    lengths = [((features @ sparse_projection(96, 16, [1, step])) ** 2).sum() / (features**2).sum() for step in range(200)]
    assert np.mean(lengths) == pytest.approx(1, abs=0.05)
    first = sparse_projection(96, 16, [1, 0])
    assert torch.equal(first, sparse_projection(96, 16, [1, 0]))
    assert not torch.equal(first, sparse_projection(96, 16, [1, 1]))
    assert (first == 0).double().mean() == pytest.approx(1 - 96**-0.5, abs=0.03)
