import pytest
import torch

from fpsde import HollowNet
from fpsde.field import COUPLED, FREE, LINEAR, OWN, OWN_LINEAR
from fpsde.hollow import CONDITIONERS
from fpsde.taylor import to_derivatives

ACTIVATIONS = ["tanh", "softplus", "silu"]


def build(dim, conditioner, device, dtype=torch.float64, **options):
    net = HollowNet(dim, conditioner, hidden=options.pop("hidden", (6, 5)), width=6, **options)
    with torch.no_grad():
        if net.matrix is not None:
            net.matrix.normal_()
        net.offset.normal_()
    return net.to(device, dtype)


def points(dim, device, dtype=torch.float64, n=4):
    generator = torch.Generator().manual_seed(dim)
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return t.to(device, dtype), x.to(device, dtype)


def dense_derivatives(net, t, x, order, coordinates=None):
    """The diagonal of nested Jacobians: d^k f_i / d x_i^k, one coordinate and point at a time; zero for those left out."""
    results = [net(t, x)]
    for k in range(1, order + 1):
        rows = torch.zeros_like(x)
        for n in range(len(x)):
            for i in range(net.dim) if coordinates is None else coordinates:
                def along(s, n=n, i=i):
                    return net(t[n:n + 1], (x[n] + s * torch.eye(net.dim).to(x)[i])[None])[0, i]

                derivative = along
                for _ in range(k):
                    derivative = torch.func.grad(derivative)
                rows[n, i] = derivative(torch.zeros((), dtype=x.dtype, device=x.device))
        results.append(rows)
    return results


@pytest.mark.parametrize("mode", ["taylor", "reverse"])
@pytest.mark.parametrize("conditioner", CONDITIONERS)
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_against_nested_jacobians(dim, conditioner, mode, order, device, dtype, tolerance, close):
    if dtype == torch.float32 and order > 2:
        pytest.skip("nested float32 derivatives of high order are no reference")
    net = build(dim, conditioner, device, dtype)
    t, x = points(dim, device, dtype, n=3)
    for result, expected in zip(net.derivatives(t, x, order, mode), dense_derivatives(net, t, x, order), strict=True):
        close(result, expected, tolerance)


@pytest.mark.parametrize("conditioner", CONDITIONERS)
@pytest.mark.parametrize("dim", [8, 33])
def test_high_orders_in_many_dimensions(dim, conditioner, device, close):
    net = build(dim, conditioner, device)
    t, x = points(dim, device, n=1)
    some = [0, dim // 2, dim - 1]
    dense = dense_derivatives(net, t, x, 4, some)
    for mode in ("taylor", "reverse"):
        for result, expected in zip(net.derivatives(t, x, 4, mode), dense, strict=True):
            close(result[:, some], expected[:, some], 1e-9)


@pytest.mark.parametrize("conditioner", CONDITIONERS)
@pytest.mark.parametrize("dim", [8, 33])
def test_first_derivative_against_dense_jacobian(dim, conditioner, device, dtype, tolerance, close):
    net = build(dim, conditioner, device, dtype)
    t, x = points(dim, device, dtype)
    jacobian = torch.vmap(torch.func.jacrev(lambda t, x: net(t[None], x[None])[0], 1))(t, x)
    expected = jacobian.diagonal(dim1=-2, dim2=-1)
    for mode in ("taylor", "reverse"):
        close(net.derivatives(t, x, 1, mode)[1], expected, tolerance)
    close(net.divergence(t, x), expected.sum(-1), tolerance)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("conditioner", CONDITIONERS)
@pytest.mark.parametrize("dim", [1, 2, 8, 33])
def test_modes_agree(dim, conditioner, activation, device, close):
    net = build(dim, conditioner, device, activation=activation)
    t, x = points(dim, device)
    for a, b in zip(net.derivatives(t, x, 4, "taylor"), net.derivatives(t, x, 4, "reverse"), strict=True):
        close(a, b, 1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("conditioner", CONDITIONERS)
@pytest.mark.parametrize("dim", [1, 3, 8])
def test_modes_agree_in_float32(dim, conditioner, activation, device, close):
    net = build(dim, conditioner, device, torch.float32, activation=activation)
    t, x = points(dim, device, torch.float32)
    exact = net.double().derivatives(t.double(), x.double(), 2)
    net = net.float()
    for mode in ("taylor", "reverse"):
        for result, expected in zip(net.derivatives(t, x, 2, mode), exact, strict=True):
            close(result.double(), expected, 2e-4)


@pytest.mark.parametrize("conditioner", CONDITIONERS)
@pytest.mark.parametrize("dim", [1, 2, 3, 8, 33])
def test_conditioner_does_not_see_its_own_coordinate(dim, conditioner, device):
    net = build(dim, conditioner, device)
    t, x = points(dim, device, n=2)
    time = net._time_features(t)
    jacobian = torch.func.jacrev(lambda x: net.conditioner(time, x).transpose(0, 1))(x)
    for n in range(2):
        for i in range(dim):
            assert jacobian[n, i, :, n, i].abs().max() <= 1e-14
            others = [j for j in range(dim) if j != i]
            if others:
                assert all(jacobian[n, i, :, n, j].abs().max() > 1e-8 for j in others)


@pytest.mark.parametrize("mode", ["taylor", "reverse"])
@pytest.mark.parametrize("conditioner", CONDITIONERS)
@pytest.mark.parametrize("dim", [1, 2, 3, 8, 33])
def test_gradients_of_a_loss_on_derivatives_equal_the_dense_ones(dim, conditioner, mode, device, dtype, tolerance, close):
    net = build(dim, conditioner, device, dtype)
    t, x = points(dim, device, dtype, n=2)
    x.requires_grad_()
    weights = [torch.randn_like(x) for _ in range(3)]

    def loss(derivatives):
        return sum((w * d).sum() + (d**2).sum() for w, d in zip(weights, derivatives, strict=True))

    dense = dense_by_autograd(net, t, x)
    names, parameters = zip(*net.named_parameters(), strict=True)
    inputs = [x, *parameters]
    expected = torch.autograd.grad(loss(dense), inputs, allow_unused=True)
    result = torch.autograd.grad(loss(net.derivatives(t, x, 2, mode)), inputs, allow_unused=True)
    for a, b, p in zip(result, expected, inputs, strict=True):
        close(a if a is not None else torch.zeros_like(p), b if b is not None else torch.zeros_like(p), 10 * tolerance)
    through = [g for name, g in zip(names, result[1:], strict=True) if name.startswith("conditioner.") and g is not None]
    assert dim == 1 or max(g.abs().max() for g in through) > 0


def dense_by_autograd(net, t, x):
    f = net(t, x)
    first = [torch.autograd.grad(f[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(net.dim)]
    second = [torch.autograd.grad(d.sum(), x, create_graph=True)[0][:, i] for i, d in enumerate(first)]
    return f, torch.stack(first, -1), torch.stack(second, -1)


@pytest.mark.parametrize("conditioner", CONDITIONERS)
def test_without_gradient_nothing_is_recorded(conditioner, device, close):
    net = build(3, conditioner, device)
    t, x = points(3, device)
    with torch.no_grad():
        taylor, reverse = (net.derivatives(t, x, 2, mode) for mode in ("taylor", "reverse"))
    assert len(reverse) == 3
    for a, b in zip(taylor, reverse, strict=True):
        close(b, a, 1e-9)
        assert not a.requires_grad
        assert not b.requires_grad


@pytest.mark.parametrize("time", [True, False])
@pytest.mark.parametrize("conditioner", CONDITIONERS)
def test_every_parameter_matters(conditioner, time, device):
    net = build(3, conditioner, device, time=time)
    net(*points(3, device)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_time_can_be_switched_off(device):
    t, x = points(3, device)
    still = build(3, "masked", device, time=False)
    assert torch.equal(still(t, x), still(t + 1, x))
    moving = build(3, "masked", device)
    assert not torch.allclose(moving(t, x), moving(t + 0.5, x))


def test_shapes_and_broadcasting_of_time(device):
    net = build(2, "leave-one-out", device)
    x = torch.randn(5, 7, 2, dtype=torch.float64, device=device)
    t = torch.rand(5, dtype=torch.float64, device=device)
    grid = net(t[:, None], x)
    assert grid.shape == x.shape
    assert torch.allclose(grid[2], net(t[2], x[2]))


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("hidden", [(6, 5), (6,)])
@pytest.mark.parametrize("dim", [1, 3])
def test_columns_times_readout_is_the_operator_applied_to_the_field(dim, hidden, linear, terms, device, close):
    net = build(dim, "leave-one-out", device, hidden=hidden, linear=linear)
    t, x = points(dim, device, n=6)
    operator = [torch.randn_like(x) for _ in range(terms)]
    expected = sum(c * d for c, d in zip(operator, net.derivatives(t, x, 2), strict=False))
    readout = net.get_readout()
    assert readout.shape == (dim, hidden[-1] + linear * dim + 1)
    close((net.columns(t, x, [operator])[0] * readout[:, None]).sum(-1).T, expected, 1e-12)
    before = net(t, x)
    net.set_readout(2 * readout)
    close(net(t, x), 2 * before, 1e-12)


@pytest.mark.parametrize("hidden", [(6, 5), (6,)])
def test_features_are_a_series_in_the_own_coordinate(hidden, device, close):
    net = build(2, "masked", device, hidden=hidden)
    t, x = points(2, device)
    for n, expected in enumerate(net.derivatives(t, x, 3)):
        values = (to_derivatives(net.features(t, x, 3))[n] * net.readout[:, None]).sum(-1).T
        close(values + net._linear(x, n), expected, 1e-11)


def test_how_a_net_starts():
    """Weights of the spread that is said, so that features are neither flat nor steps, and no readout if so told."""
    net = HollowNet(4, hidden=(3000, 50), width=7, bend=0.6, own_share=0.25).requires_grad_(False)
    reach = 0.6 * (1 / 5) ** 0.5
    coupled = slice(750, None)
    for weight, spread in ((net.own, 0.6), (net.others[..., coupled], reach / 7**0.5), (net.clock[..., coupled], reach / 7**0.5),
                           (net.clock[..., :750], 0.2 / 7**0.5), (net.layers[0], 3000**-0.5), (net.shifts[0], 0.6),
                           (net.shifts[1], 0.6), (net.readout, 50**-0.5)):
        assert float(weight.std()) == pytest.approx(spread, rel=0.12)
        assert abs(float(weight.mean())) < 0.12 * spread
    assert not net.others[..., :750].any()
    assert not net.matrix.any()
    assert not net.offset.any()
    assert not HollowNet(2, random_readout=False).readout.any()
    small = {k: HollowNet(1, hidden=(4000,), bend=1.0).others.detach().abs().quantile(k) for k in (0.1, 0.9)}
    # Some units see next to nothing of the other coordinates, others as much as their own.
    assert 50 * small[0.1] < small[0.9]


def test_what_is_usual():
    assert HollowNet(3).settings == {"dim": 3, "conditioner": "leave-one-out", "hidden": [64], "width": 16, "activation": "tanh",
                                     "time": True, "linear": True, "own_share": 0.0}
    torch.manual_seed(0)
    usual = HollowNet(3)
    torch.manual_seed(0)
    said = HollowNet(3, random_readout=True, bend=1.5)
    assert all(torch.equal(a, b) for a, b in zip(usual.state_dict().values(), said.state_dict().values(), strict=True))
    t, x = points(3, "cpu", torch.float32)
    assert len(usual.derivatives(t, x)) == 3
    assert torch.equal(usual.derivatives(t, x)[1], usual.derivatives(t, x, 1, "taylor")[1])


def test_time_features_are_those_of_files_that_were_written(device):
    """2 t - 1 and three waves of sine and cosine: another order would make of a file another model."""
    features = build(2, "masked", device)._time_features(torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64, device=device))
    root = 0.5**0.5
    expected = [[-1, 0, 0, 0, 1, 1, 1], [-0.5, root, 1, root, root, 0, -root], [1, 0, 0, 0, -1, 1, -1]]
    assert torch.allclose(features, torch.tensor(expected, dtype=torch.float64, device=device), atol=1e-14)


@pytest.mark.parametrize(("dim", "hidden", "linear", "kinds"), [
    (1, (4,), True, [*[OWN] * 4, OWN_LINEAR, FREE]),
    (2, (4,), True, [OWN, *[COUPLED] * 3, OWN_LINEAR, LINEAR, FREE]),
    (2, (4,), False, [OWN, *[COUPLED] * 3, FREE]),
    (1, (3, 2), True, [COUPLED, COUPLED, OWN_LINEAR, FREE])])
def test_kinds_and_ridges_of_a_readout(dim, hidden, linear, kinds):
    net = HollowNet(dim, hidden=hidden, linear=linear, own_share=0.25)
    """Those of the first coordinate; in the others the linear part is their own at their own place."""
    assert net.groups()[0].tolist() == kinds
    assert net.groups().shape == net.get_readout().shape
    own = (net.groups() == OWN_LINEAR).nonzero().tolist()
    assert own == ([[i, hidden[-1] + i] for i in range(dim)] if linear else [])
    ridge = {OWN: 3.0, COUPLED: 3.0, LINEAR: 7.0, OWN_LINEAR: 7.0, FREE: 0.0}
    assert net.penalty(3.0, 7.0).tolist() == [ridge[kind] for kind in kinds]
    assert [p.shape for p in net.readout_parameters()] == [(dim, hidden[-1]), *[(dim, dim)] * linear, (dim,)]


def test_reverse_mode_without_gradient_leaves_no_graph(device):
    net = build(2, "masked", device)
    t, x = points(2, device)
    with torch.no_grad():
        assert not any(d.requires_grad for d in net.derivatives(t, x, 2, "reverse"))


@pytest.mark.parametrize(("options", "message"), [
    ({"dim": 0}, "dim must be"), ({"conditioner": "x"}, "conditioner must be"), ({"activation": "relu"}, "activation must"),
    ({"hidden": ()}, "hidden must")])
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HollowNet(**{"dim": 2, **options})


def test_bad_calls_are_named():
    net = HollowNet(2)
    t, x = torch.tensor(0.0), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="2 coordinates"):
        net(t, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="order must"):
        net.derivatives(t, x, -1)
    with pytest.raises(ValueError, match="mode must"):
        net.derivatives(t, x, 1, mode="forward")


@pytest.mark.parametrize("conditioner", CONDITIONERS)
def test_memory_is_linear_in_the_dimension(conditioner, device):
    """What autograd holds for the backward pass, and what there is of parameters but for the linear part."""
    held = []
    for dim in (40, 80, 160):
        net, sizes = build(dim, conditioner, device, linear=False), {}

        def hold(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            net.derivatives(*points(dim, device), order=2)
        held.append(sum(sizes.values()) + sum(p.nbytes for p in net.parameters()))
    assert held[2] - held[1] <= 2.1 * (held[1] - held[0])
