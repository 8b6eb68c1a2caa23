import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fpsde.coordinates import Coordinates
from fpsde.diffusion import FunctionDiffusion
from fpsde.given import GivenField, check_function

CENTRE, SCALE, CLOCK = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]), torch.tensor([3.0, 4.0])


def bent(x, t):
    return torch.stack([1 + 0.1 * x[:, 0] ** 2 + t, (0.3 * x[:, 0] * x[:, 1]).exp()], -1)


def field(name, function=bent):
    return GivenField(function, Coordinates(CENTRE, SCALE, CLOCK), name)


def test_units():
    """dx = f dt + g dW in the units of z and tau: f T / scale and g sqrt(T) / scale."""
    tau, z = torch.rand(6, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    x, t = CENTRE + SCALE * z, 3 + 4 * tau
    torch.testing.assert_close(field("drift_prior")(tau, z), bent(x, t) * 4 / SCALE)
    torch.testing.assert_close(field("diffusion")(tau, z), bent(x, t) * 2 / SCALE)
    torch.testing.assert_close(field("drift_prior")(torch.tensor(0.5), z[None]), field("drift_prior")(torch.tensor(0.5).expand(6), z)[None])
    assert field("drift_prior")(tau.float(), z.float()).dtype == torch.float32


def test_variance_against_dense_autograd(close):
    diffusion = FunctionDiffusion(field("diffusion"))
    t, x = torch.tensor(0.3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    a, slope, bend = diffusion.variance(t, x)
    for n, point in enumerate(x):
        def one(y):
            return diffusion(t, y[None])[0].square()

        jacobian, hessian = torch.func.jacrev(one)(point), torch.func.hessian(one)(point)
        close(a[n], one(point), 1e-9)
        close(slope[n], jacobian.diagonal(), 1e-9)
        close(bend[n], torch.stack([hessian[i, i, i] for i in range(2)]), 1e-9)
    with torch.no_grad():
        assert not any(part.requires_grad for part in diffusion.variance(t, x))
    assert diffusion.get_readout().shape == (2, 0)
    assert diffusion.columns(t, x, [[torch.ones_like(x)]])[0].shape == (2, 6, 0)


def test_constant_and_linear_functions_have_no_further_derivatives():
    t, x = torch.tensor(0.3), torch.randn(6, 2)
    for function, slope in ((lambda x, t: torch.ones_like(x), 0.0), (lambda x, t: 3 * x, 12.0)):
        results = field("drift_prior", function).derivatives(t, x, 2)
        assert torch.allclose(results[1], torch.full_like(x, slope))
        assert (results[2] == 0).all()


def test_copies_share_the_function_and_a_network_stays_out_of_the_weights():
    network = nn.Linear(2, 2).double()
    one = field("drift_prior", lambda x, t: network(x))
    two = field("drift_prior", Network(network))
    assert not list(two.parameters())
    assert not two.state_dict()
    z = torch.randn(3, 2)
    for given in (one, two):
        assert torch.equal(copy.deepcopy(given).double()(torch.tensor(0.1), z), given(torch.tensor(0.1), z))
    assert copy.deepcopy(two)._held is two._held
    one = field("drift_prior")
    assert torch.equal(pickle.loads(pickle.dumps(one))(torch.tensor(0.1), z), one(torch.tensor(0.1), z))


class Network(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t):
        return self.inner(x)


@pytest.mark.parametrize(("function", "message"), [
    (0.5, "must be a function"),
    (lambda x: x, "raised TypeError"),
    (lambda x, t: np.sin(x.numpy()), "raised RuntimeError"),
    (lambda x, t: x.float() @ torch.eye(2, dtype=torch.float64), "raised RuntimeError"),
    (lambda x, t: x[:, :1], r"of the shape of X, \(9, 2\), got torch.float64 \(9, 1\)"),
    (lambda x, t: 1.0, "got float"),
    (lambda x, t: torch.ones_like(x).long(), "got torch.int64"),
    (lambda x, t: (x - x[3]).abs().log(), "must be finite, got"),
    (lambda x, t: x.detach().square(), "has no gradient"),
    (lambda x, t: (x - x[3].detach()).abs().sqrt(), "finite derivative"),
])
def test_functions_that_cannot_be_used_are_named(function, message):
    x, t = torch.randn(9, 2), torch.rand(9)
    with pytest.raises(ValueError, match=message) as caught:
        check_function("drift_prior", function, x, t)
    assert "drift_prior" in str(caught.value)


def test_a_diffusion_must_be_positive():
    x, t = torch.randn(9, 2), torch.rand(9)
    check_function("diffusion", lambda x, t: x.square() + 1, x, t, positive=True)
    check_function("diffusion", lambda x, t: torch.full_like(x, 0.3), x, t, positive=True)
    check_function("diffusion", lambda x, t: (1 + t)[:, None].expand_as(x), x, t, positive=True)
    with pytest.raises(ValueError, match="finite and positive, got"):
        check_function("diffusion", lambda x, t: x, x, t, positive=True)


def test_values_must_be_finite_beside_the_data_too():
    with pytest.raises(ValueError, match=r"drift_prior.*wherever the density or a path leads; it is not at X = \[-3\.0, -2\.0\], t = 5"):
        field("drift_prior", lambda x, t: x[:, :1].log() + x)(torch.tensor(0.5), torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
    # A path that is lost already is reported by the simulation.
    assert field("drift_prior")(torch.tensor(0.5), torch.full((1, 2), torch.nan)).isnan().all()
