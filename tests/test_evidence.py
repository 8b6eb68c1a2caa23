import numpy as np
import pytest
import torch

from fpsde.evidence import NOTHING, Component, condensed, explain


def regression(seed=0, n=120):
    """Two groups of coefficients, one with variance 4 and one with none, under unit noise."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    w = 2 * torch.randn(10, generator=generator, dtype=torch.float64)
    y = a @ w + torch.randn(n, generator=generator, dtype=torch.float64)
    return a, b, w, y


def test_coefficients_are_those_of_ridge_regression(close):
    a, b, _, y = regression()
    found = explain(y, torch.eye(120, dtype=torch.float64), [Component(a @ a.T, 1.0, 1e6), Component(b @ b.T, 1.0, 1e6)])
    both = torch.cat([a, b], 1)
    precision = torch.cat([1 / found.variances[:1].expand(10), 1 / found.variances[1:].clamp_min(1e-12).expand(10)])
    ridge = torch.linalg.solve(both.T @ both + torch.diag(precision), both.T @ y)
    close(found.variances[0] * (a.T @ found.dual), ridge[:10], 1e-6)


def test_the_evidence_finds_what_was_put_in():
    a, b, w, y = regression()
    found = explain(y, torch.eye(120, dtype=torch.float64), [Component(a @ a.T, 1.0, 1e6), Component(b @ b.T, 1.0, 1e6)])
    assert 0.3 < found.variances[0] / w.square().mean() < 3
    assert found.variances[1] < 0.02
    assert 0.7 < found.misfit < 1.4


def test_the_evidence_rises_with_every_round():
    a, b, _, y = regression(1)
    components = [Component(a @ a.T, 1e-3, 1e6), Component(b @ b.T, 10.0, 1e6)]
    values = [explain(y, torch.eye(120, dtype=torch.float64), components, rounds).log_evidence for rounds in range(12)]
    assert all(later >= earlier - 1e-9 for earlier, later in zip(values, values[1:], strict=False))


def test_log_evidence_against_the_dense_normal_density():
    a, _, _, y = regression(2)
    found = explain(y, torch.eye(120, dtype=torch.float64), [Component(a @ a.T, 3.0, 3.0)], rounds=0)
    dense = torch.distributions.MultivariateNormal(torch.zeros_like(y), torch.eye(120).double() + 3 * a @ a.T).log_prob(y)
    constant = 60 * np.log(2 * np.pi)
    assert found.log_evidence == pytest.approx(float(dense + constant), rel=1e-9)


def test_noise_that_was_understated_is_found():
    a, _, _, y = regression(3)
    noise = torch.eye(120, dtype=torch.float64)
    found = explain(y, 0.1 * noise, [Component(0.1 * noise, 0.1, 1e3, noise=True), Component(a @ a.T, 1.0, 1e6)], 200)
    assert 0.6 < 0.1 * (1 + found.variances[0]) < 1.6
    assert 0.9 < found.misfit < 1.1


def test_variances_stay_below_their_bound():
    a, _, _, y = regression()
    found = explain(y, torch.eye(120, dtype=torch.float64), [Component(a @ a.T, 1e-3, 0.01)])
    assert found.variances[0] <= 0.01


def test_as_many_observations_as_coefficients_say_the_same(close):
    a, b, _, y = regression(4)
    rough = torch.randn(120, 120, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = 0.1 * torch.eye(120, dtype=torch.float64) + 0.02 * rough @ rough.T / 120
    found = []
    for matrix, told, error, rest in ((torch.cat([a, b], 1), y, noise, NOTHING), condensed(torch.cat([a, b], 1), y, noise)):
        parts = [Component(part @ part.T, 1.0, 1e6) for part in matrix.split(10, 1)]
        result = explain(told, error, [Component(error, 0.1, 1e3, noise=True), *parts], 100, rest)
        found.append((result.variances, torch.tensor([result.misfit, result.log_evidence]), matrix.T @ result.dual))
    assert len(told) == 20
    for dense, short in zip(*found, strict=True):
        close(short, dense, 1e-7)
