import pytest
import torch
from test_drift import randomised

from fpsde.coordinates import Coordinates
from fpsde.drift import PriorDrift
from fpsde.field import COUPLED, FREE, LINEAR, OWN, OWN_LINEAR
from fpsde.given import GivenField
from fpsde.hollow import HollowNet
from fpsde.potential import GradientDrift, learned_potential

SCALE = torch.tensor([2.0, 0.3, 5.0], dtype=torch.float64)
METRIC = SCALE.log().mean().mul(2).exp() / SCALE**2


def test_the_drift_is_minus_the_gradient_in_data_units(close):
    """With x = scale z and any unit of time: f_i = scale_i f_i(z) = -unit dV / dx_i, so its Jacobian is symmetric."""
    drift = randomised(GradientDrift(3, 12, METRIC))
    unit = METRIC[0] * SCALE[0] ** 2
    for x in torch.randn(5, 3, dtype=torch.float64) * SCALE:
        def f(x):
            return SCALE * drift(torch.tensor(0.0), (x / SCALE)[None])[0]

        close(f(x), -torch.func.grad(lambda x: unit * drift.potential(x / SCALE))(x), 1e-9)
        jacobian = torch.func.jacrev(f)(x)
        close(jacobian, jacobian.T, 1e-9)
        assert (jacobian - jacobian.diagonal().diag()).abs().max() > 1e-3


def test_the_potential_is_zero_at_the_origin_and_far_out_finite():
    drift = randomised(GradientDrift(2, 8))
    assert drift.potential(torch.zeros(1, 2, dtype=torch.float64)).abs() < 1e-12
    assert torch.isfinite(drift.potential(torch.full((1, 2), 1e6, dtype=torch.float64))).all()


def test_kinds_of_features():
    drift = GradientDrift(4, 40)
    seen = (drift.directions != 0).sum(-1)
    assert (seen[:20] == 1).all()
    assert (seen[20:] == 4).all()
    # Those of one coordinate are spread over all.
    assert (drift.directions[:20] != 0).sum(0).tolist() == [5, 5, 5, 5]
    assert [int((drift.groups() == kind).sum()) for kind in (OWN, COUPLED, LINEAR, OWN_LINEAR, FREE)] == [20, 20, 6, 4, 4]
    assert (GradientDrift(1, 8).groups() != COUPLED).all()


@pytest.mark.parametrize("metric", [torch.ones(3), METRIC.float() * 100])
def test_every_feature_gives_a_drift_of_at_most_about_one(metric):
    """However unlike the scales, so that one variance can be expected of all of a kind."""
    x = torch.randn(200, 3)
    columns, = GradientDrift(3, 40, metric).columns(torch.tensor(0.0), x, [[torch.ones_like(x)]])
    largest = columns.square().mean(1).amax(0).sqrt()
    assert largest.max() < 2
    assert largest.median() > 0.1


def test_it_starts_at_zero_and_refuses_other_dimensions():
    drift = GradientDrift(2, 8)
    assert (drift(torch.tensor(0.0), torch.randn(5, 2)) == 0).all()
    with pytest.raises(ValueError, match="must have 2 coordinates"):
        drift(torch.tensor(0.0), torch.randn(5, 3))


def test_what_is_learned_as_a_potential_is_found():
    drift, zero = GradientDrift(2, 8), GivenField(
        lambda x, t: 0 * x, Coordinates(torch.zeros(2), torch.ones(2), torch.tensor([0.0, 1.0])), "drift_prior")
    assert learned_potential(drift) is learned_potential(PriorDrift(drift, zero)) is drift
    assert learned_potential(HollowNet(2)) is None
