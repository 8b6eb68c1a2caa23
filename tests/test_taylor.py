import math

import pytest
import torch

from fpsde import taylor

FUNCTIONS = {
    "tanh": (taylor.tanh, torch.tanh), "sigmoid": (taylor.sigmoid, torch.sigmoid), "exp": (taylor.exp, torch.exp),
    "softplus": (taylor.softplus, lambda z: torch.logaddexp(z, torch.zeros_like(z))),
    "silu": (taylor.silu, lambda z: z * z.sigmoid()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4, 6])
def test_activation_of_a_polynomial_against_nested_autograd(name, order, device, close):
    series_function, function = FUNCTIONS[name]
    points = torch.linspace(-2, 2, 9, dtype=torch.float64, device=device)

    def inner(x):
        return 0.3 - 1.1 * x + 0.4 * x**2

    derivatives = [torch.func.vmap(f)(points) for f in _nested(inner, order)]
    result = taylor.to_derivatives(series_function(taylor.from_derivatives(tuple(derivatives))))
    expected = [torch.func.vmap(f)(points) for f in _nested(lambda x: function(inner(x)), order)]
    for n in range(order + 1):
        close(result[n], expected[n], 1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("order", [1, 2, 5])
def test_a_short_series_is_one_with_zeros(name, order, close):
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    padded = [z, torch.ones_like(z), *[torch.zeros_like(z)] * (order - 1)]
    for a, b in zip(FUNCTIONS[name][0]([z, 1.0], order), FUNCTIONS[name][0](padded), strict=True):
        close(a, b, 1e-12)


def test_product_is_leibniz_rule(close):
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    sine = [x.sin(), x.cos(), -x.sin(), -x.cos()]
    wave = [x.exp()] * 4
    result = taylor.to_derivatives(taylor.multiply(taylor.from_derivatives(tuple(sine)),
                                                   taylor.from_derivatives(tuple(wave))))
    expected = [sum(math.comb(n, j) * sine[j] * wave[n - j] for j in range(n + 1)) for n in range(4)]
    for a, b in zip(result, expected, strict=True):
        close(a, b, 1e-12)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "silu"])
def test_extreme_arguments_stay_finite(name, dtype):
    z = [torch.tensor([-500.0, 0.0, 500.0], dtype=dtype)] + [torch.ones(3, dtype=dtype)] * 4
    assert all(torch.isfinite(c).all() for c in FUNCTIONS[name][0](z))


def _nested(function, order):
    functions = [function]
    for _ in range(order):
        functions.append(torch.func.grad(functions[-1]))
    return functions


@pytest.mark.parametrize("name", taylor.ACTIVATIONS)
def test_the_function_of_a_tensor_is_the_value_of_the_series(name, device, close):
    function, series_function = taylor.ACTIVATIONS[name]
    z = torch.linspace(-4, 4, 33, dtype=torch.float64, device=device)
    close(function(z), series_function([z])[0], 1e-14)


def test_a_sharp_softplus_of_a_series(device, close):
    z = torch.linspace(-2, 2, 9, dtype=torch.float64, device=device)
    value, slope, bend = taylor.to_derivatives(taylor.compose_softplus([z, 2 + 0 * z, z], 3.0))
    softplus, sigmoid = torch.log1p(torch.exp(3 * z)) / 3, torch.sigmoid(3 * z)
    close(value, softplus, 1e-12)
    close(slope, 2 * sigmoid, 1e-12)
    close(bend, 2 * z * sigmoid + 4 * 3 * sigmoid * (1 - sigmoid), 1e-12)
