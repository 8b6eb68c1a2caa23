import math

import numpy as np
import pytest
import torch

from fpsde import evidence
from fpsde.evidence import NOTHING, Component, Part, Trial, condensed, explain, explain_sparingly


def regression(seed=0, n=120):
    """Two groups of coefficients, one with variance 4 and one with none, under unit noise."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    w = 2 * torch.randn(10, generator=generator, dtype=torch.float64)
    y = a @ w + torch.randn(n, generator=generator, dtype=torch.float64)
    return a, b, w, y


def test_coefficients_are_those_of_ridge_regression(close):
    a, b, _, y = regression()
    found = explain(y, torch.eye(120, dtype=torch.float64), [Component(a, 1.0, 1e6), Component(b, 1.0, 1e6)])
    both = torch.cat([a, b], 1)
    precision = torch.cat([1 / found.variances[:1].expand(10), 1 / found.variances[1:].clamp_min(1e-12).expand(10)])
    ridge = torch.linalg.solve(both.T @ both + torch.diag(precision), both.T @ y)
    close(found.variances[0] * (a.T @ found.dual), ridge[:10], 1e-6)


def test_the_evidence_finds_what_was_put_in():
    a, b, w, y = regression()
    found = explain(y, torch.eye(120, dtype=torch.float64), [Component(a, 1.0, 1e6), Component(b, 1.0, 1e6)])
    assert 0.3 < found.variances[0] / w.square().mean() < 3
    assert found.variances[1] < 0.02
    assert 0.7 < found.misfit < 1.4


def test_the_evidence_rises_with_every_round():
    a, b, _, y = regression(1)
    components = [Component(a, 1e-3, 1e6), Component(b, 10.0, 1e6)]
    values = [explain(y, torch.eye(120, dtype=torch.float64), components, rounds).log_evidence for rounds in range(12)]
    assert all(later >= earlier - 1e-9 for earlier, later in zip(values, values[1:], strict=False))


def test_log_evidence_against_the_dense_normal_density():
    a, _, _, y = regression(2)
    found = explain(y, torch.eye(120, dtype=torch.float64), [Component(a, 3.0, 3.0)], rounds=0)
    dense = torch.distributions.MultivariateNormal(torch.zeros_like(y), torch.eye(120).double() + 3 * a @ a.T).log_prob(y)
    constant = 60 * np.log(2 * np.pi)
    assert found.log_evidence == pytest.approx(float(dense + constant), rel=1e-9)


def test_noise_that_was_understated_is_found():
    a, _, _, y = regression(3)
    noise = torch.eye(120, dtype=torch.float64)
    found = explain(y, 0.1 * noise, [Component(None, 0.1, 1e3), Component(a, 1.0, 1e6)], 200)
    assert 0.6 < 0.1 * (1 + found.variances[0]) < 1.6
    assert 0.9 < found.misfit < 1.1


def test_variances_stay_below_their_bound():
    a, _, _, y = regression()
    found = explain(y, torch.eye(120, dtype=torch.float64), [Component(a, 1e-3, 0.01)])
    assert found.variances[0] <= 0.01


def test_as_many_observations_as_coefficients_say_the_same(close):
    a, b, _, y = regression(4)
    rough = torch.randn(120, 120, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = 0.1 * torch.eye(120, dtype=torch.float64) + 0.02 * rough @ rough.T / 120
    found = []
    for matrix, told, error, rest in ((torch.cat([a, b], 1), y, noise, NOTHING), condensed(torch.cat([a, b], 1), y, noise)):
        parts = [Component(part, 1.0, 1e6) for part in matrix.split(10, 1)]
        result = explain(told, error, [Component(None, 0.1, 1e3), *parts], 100, rest)
        found.append((result.variances, torch.tensor([result.misfit, result.log_evidence]), matrix.T @ result.dual))
    assert len(told) == 20
    for dense, short in zip(*found, strict=True):
        close(short, dense, 1e-7)


NOISE = torch.eye(120, dtype=torch.float64)
# Noise as it was said to be.
STATED = Component(None, 0.0, 0.0)


def nested(seed):
    """What a group explains, another that says nearly the same, and one that says nothing; under unit noise."""
    a, b, _, y = regression(seed)
    other = a + 0.3 * torch.randn(a.shape, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    return y, [STATED, *(Component(m, 1.0, 1e6) for m in (a, other, b))]


@pytest.mark.parametrize("seed", range(4))
def test_what_the_evidence_does_not_clearly_ask_for_is_left_out(seed):
    y, components = nested(seed)
    found = explain_sparingly(y, NOISE, components, [Trial([Part([3]), Part([2]), Part([1])], 3.0)])
    assert found.variances[1] > 0.3
    assert found.variances[2:].tolist() == [0.0, 0.0]
    assert found.log_evidence >= explain(y, NOISE, components).log_evidence - 3
    alone = explain(y, NOISE, components[:2])
    assert found.log_evidence == pytest.approx(alone.log_evidence, abs=1e-3)
    torch.testing.assert_close(found.dual, alone.dual, rtol=1e-3, atol=1e-3)


def test_of_two_that_say_nearly_the_same_the_one_tried_later_stays(close):
    y, components = nested(0)
    found = explain_sparingly(y, NOISE, components, [Trial([Part([3]), Part([1])], 1e3)])
    assert found.variances[1] == found.variances[3] == 0
    assert found.variances[2] > 0.3
    assert not explain_sparingly(y, NOISE, components, [Trial([Part([1]), Part([3]), Part([2])], 1e6)]).variances.any()
    close(explain_sparingly(y, NOISE, components, []).variances, explain(y, NOISE, components).variances, 1e-12)


def test_proof_is_asked_for_all_that_is_left_out_together():
    """Two that raise the evidence by less than the proof each, and by more together."""
    a, b, _, _ = regression(5)
    generator = torch.Generator().manual_seed(6)
    w, e = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (20, 120))
    y, components = 0.4 * torch.cat([a, b], 1) @ w + e, [STATED, *(Component(m, 0.1, 1e6) for m in (a, b))]
    both, one, none = (explain(y, NOISE, components[:k]).log_evidence for k in (3, 2, 1))
    proof = 0.5 * (max(both - one, one - none) + both - none)
    assert min(both - one, one - none) > 1
    assert (explain_sparingly(y, NOISE, components, [Trial([Part([2]), Part([1])], proof)]).variances > 0).tolist() == [False, True, False]
    apart = explain_sparingly(y, NOISE, components, [Trial([Part([2])], proof), Trial([Part([1])], proof)])
    assert not apart.variances.any()


def many(seed=7, groups=40, there=(3, 11, 30)):
    """Narrow groups of three columns each, few of which explain anything."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(groups, 120, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(120, generator=generator, dtype=torch.float64)
    for k in there:
        y = y + factors[k] @ torch.randn(3, generator=generator, dtype=torch.float64)
    return y, [STATED, *(Component(factor, 0.1, 1e6) for factor in factors)]


def test_of_many_groups_those_remain_that_explain_something(monkeypatch):
    """Most go at once: with few trials, and with what is left as it is when they go one by one."""
    y, components = many()
    counted, explained = [], evidence._Regression.explain
    monkeypatch.setattr(evidence._Regression, "explain", lambda *given: counted.append(0) or explained(*given))
    together = explain_sparingly(y, NOISE, components, [Trial([Part(range(1, 41), math.log(40))], 3.0)])
    assert together.variances.nonzero()[:, 0].tolist() == [4, 12, 31]
    assert len(counted) < 15
    alone = explain_sparingly(y, NOISE, components, [Trial([Part([k]) for k in range(1, 41)], 30.0)])
    torch.testing.assert_close(together.variances, alone.variances, rtol=0.02, atol=0.0)


def test_a_price_is_asked_of_each_that_remains():
    """A group that raises the evidence by more than the proof and by less than with its price."""
    y, components = many(there=())
    y = y + 0.25 * components[1].factor @ torch.ones(3, dtype=torch.float64)
    gain = explain(y, NOISE, components[:2]).log_evidence - explain(y, NOISE, components[:1]).log_evidence
    assert gain > 4
    kept = [bool(explain_sparingly(y, NOISE, components[:2], [Trial([Part([1], price)], 3.0)]).variances[1] > 0)
            for price in (0.0, gain - 3.1, gain - 2.9)]
    assert kept == [True, True, False]


def test_what_the_evidence_falls_by_without_a_group_against_leaving_it_out():
    y, components = many()
    regression, variances = evidence._Regression(y, 2 * NOISE, components, NOTHING), torch.linspace(0, 1, 41).double()
    whole = regression._under(variances).log_evidence
    losses = [whole - regression._under(variances * (torch.arange(41) != k)).log_evidence for k in range(41)]
    for most in (-2.0, 0.0, 3.0, 1e6):
        assert regression.slight(variances, range(1, 41), most) == sorted(
            (k for k in range(1, 41) if losses[k] < most), key=losses.__getitem__)


def test_wide_and_narrow_groups_are_treated_alike(monkeypatch, close):
    y, components = many()
    narrow = explain(y, NOISE, components)
    monkeypatch.setattr(evidence, "NARROW", 2)
    wide = explain(y, NOISE, components)
    close(narrow.variances, wide.variances, 1e-9)
    close(narrow.dual, wide.dual, 1e-9)
    assert narrow.log_evidence == pytest.approx(wide.log_evidence, rel=1e-12)
    assert narrow.misfit == pytest.approx(wide.misfit, rel=1e-9)


def test_what_was_left_out_no_longer_costs_observations(close, monkeypatch):
    """Once the sixty columns are gone, 32 observations say the same of what is there as 120."""
    generator = torch.Generator().manual_seed(7)
    a, _, _, y = regression(7)
    rough, idle = (torch.randn(120, n, generator=generator, dtype=torch.float64) for n in (120, 60))
    others = [torch.randn(120, 2, generator=generator, dtype=torch.float64) for _ in range(6)]
    y = y + others[1] @ torch.ones(2, dtype=torch.float64)
    noise = NOISE + 0.5 * rough @ rough.T / 120
    components = [Component(None, 0.1, 100.0), Component(a, 1.0, 1e6), Component(idle, 1.0, 1e6),
                  *(Component(other, 1.0, 1e6) for other in others), Component(idle[:, :10] + a, 1.0, 1e6)]
    order = [Part([2]), Part([9]), Part(range(3, 9), 2.0)]
    given, found = [], []
    explains = evidence._Regression.explain

    def watched(self, *arguments):
        given[-1].append(len(self.observed))
        return explains(self, *arguments)

    monkeypatch.setattr(evidence._Regression, "explain", watched)
    for fewer in (0.0, 0.75):
        monkeypatch.setattr(evidence, "FEWER", fewer)
        given.append([])
        found.append(explain_sparingly(y, noise, components, [Trial(order, 3.0)], 60))
    assert set(given[0]) == {120}
    assert given[1][0] == 120
    assert min(given[1]) < 40
    assert (found[1].variances > 0).tolist() == [True, True, False, False, True] + 5 * [False]
    for one, other in zip(*found, strict=True):
        close(torch.as_tensor(one), torch.as_tensor(other), 1e-6)
