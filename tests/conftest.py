import numpy as np
import pytest
import torch
from scipy import optimize


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device that tests run on: cpu or cuda")
    parser.addoption("--dtype", default="both", help="dtype of the tests that leave it open: float64, float32 or both")


def pytest_collection_modifyitems(config, items):
    if torch.device(config.getoption("--device")).type != "cuda":
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="run with --device cuda"))


def pytest_generate_tests(metafunc):
    if "dtype" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--dtype")
        names = ["float64", "float32"] if chosen == "both" else [chosen]
        metafunc.parametrize("dtype", [getattr(torch, name) for name in names], ids=names)


@pytest.fixture(scope="session")
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def tolerance(dtype):
    """Relative error allowed against a dense reference in the same dtype."""
    return 1e-9 if dtype == torch.float64 else 2e-3


@pytest.fixture
def close():
    """Asserts that two tensors agree to a relative error of their largest entry."""

    def check(result, expected, relative):
        result, expected = torch.as_tensor(result).detach(), torch.as_tensor(expected).detach()
        assert result.shape == expected.shape
        scale = float(expected.abs().max()) or 1.0
        assert float((result - expected).abs().max()) <= relative * scale

    return check


@pytest.fixture
def cheapest():
    """The least cost of a transport between masses, of shapes (n,) and (m,), by linear programming."""

    def solve(cost, mass_x, mass_y):
        n, m = cost.shape
        sums = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
        return optimize.linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate([mass_x, mass_y])).fun

    return solve


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
