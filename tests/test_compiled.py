import warnings

import numpy as np
import pytest
import torch
from problems import rotating_snapshots
from torch import nn

from fpsde import FokkerPlanckSDE
from fpsde.compiled import compiled, pays
from fpsde.mixture import initial_path
from fpsde.path import PathLoss

X, T = rotating_snapshots(40, np.array([0.0, 0.5, 1.0]))
CPU = torch.device("cpu")


def fit(**settings):
    chosen = {"n_components": 2, "max_steps": 12, "hidden": (4,), "random_state": 0, "device": "cpu", **settings}
    return FokkerPlanckSDE(**chosen).fit(X, T)


def test_only_long_runs_pay():
    assert not pays(2000, 2048 * 2, CPU)
    assert pays(10**6, 2048 * 16, CPU)
    assert not pays(10**6, 2048 * 16, torch.device("cuda"))


def test_without_a_compiler_one_warning_says_so_and_the_fit_is_the_same(monkeypatch):
    def broken(*_):
        raise FileNotFoundError("no g++\nin sight")

    monkeypatch.setattr("torch.compile", lambda *_, **__: broken)
    with pytest.warns(RuntimeWarning, match=r"cannot be compiled \(FileNotFoundError: no g\+\+ in sight\)") as caught:
        model = fit(compile=True)
    assert len(caught) == 1
    # A short fit is not compiled of itself.
    monkeypatch.setattr("torch.compile", lambda *_, **__: pytest.fail("compiled"))
    assert model.summary_ == fit().summary_


def test_what_is_wrong_with_the_step_itself_is_raised(monkeypatch):
    class Wrong(nn.Module):
        def forward(self):
            raise ArithmeticError("mine")

    monkeypatch.setattr("torch.compile", lambda module, **_: module)
    with pytest.raises(ArithmeticError, match="mine"):
        compiled(Wrong())()


def test_compiled_code_serves_every_call(monkeypatch):
    class Fast:
        """Like what torch.compile returns: a module that has no truth value where the original has no length."""

        def __init__(self, module):
            self.calls = 0

        def __len__(self):
            raise TypeError("no length")

        def __call__(self):
            self.calls += 1
            return self.calls

    monkeypatch.setattr("torch.compile", lambda module, **_: Fast(module))
    forward = compiled(nn.Module())
    assert [forward(), forward(), forward()] == [1, 2, 3]


def test_a_wrong_setting():
    with pytest.raises(ValueError, match="compile must be 'auto', True or False, got 'yes'"):
        fit(compile="yes")


@pytest.mark.slow
@pytest.mark.parametrize("constant", [True, False])
def test_compiled_and_eager_agree(constant, rng, close):
    """Of a second path of the same shape, too."""
    t, batch = torch.linspace(0, 1, 3), torch.randn(3, 50, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            path = initial_path([rng.standard_normal((40, 2)) for _ in range(3)], np.linspace(0, 1, 3), 3, rng, constant).float()
            chosen = (1e-3, 0.1) if constant else ()
            model = PathLoss(path, t, *chosen)
            noise, gradients = torch.randn(8, 2, path.noise_size), []
            for function in (model, compiled(model)):
                model.zero_grad()
                terms = function(t, batch, torch.linspace(0, 1, 8), noise)
                terms.loss.backward()
                gradients.append([terms.loss, *(p.grad.clone() for p in path.parameters())])
            for found, expected in zip(gradients[1], gradients[0], strict=True):
                close(found, expected, 1e-4)


@pytest.mark.slow
def test_a_compiled_fit_is_the_fit_but_for_round_off():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits = [fit(compile=choice) for choice in (True, False)]
    a, b = (model.score_samples(X, T) for model in fits)
    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2)
