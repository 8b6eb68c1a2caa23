import warnings

import numpy as np
import pytest
import torch
from problems import Bowl, rotating_snapshots
from torch import nn

from fpsde import FokkerPlanckSDE
from fpsde.compiled import AUTONOMOUS_PATH, NETS, PATH, TRIALS, Compiled, differentiated, pays
from fpsde.diffusion import StateDiffusion
from fpsde.fokker_planck import FokkerPlanckLoss, LossWeights
from fpsde.hollow import HollowNet
from fpsde.mixture import initial_path
from fpsde.path import PathLoss
from fpsde.train import TrainConfig, train

X, T = rotating_snapshots(40, np.array([0.0, 0.5, 1.0]))
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def fit(**settings):
    chosen = {"n_components": 2, "max_steps": 12, "hidden": (4,), "random_state": 0, "device": "cpu", **settings}
    return FokkerPlanckSDE(**chosen).fit(X, T)


def test_only_long_runs_pay():
    assert not pays(2000, 2048 * 2, PATH, CPU)
    assert pays(10**6, 2048 * 16, PATH, CPU)
    # A GPU takes as long for few points as for many.
    for gain in (PATH, AUTONOMOUS_PATH, NETS):
        assert not pays(2000, 2048 * 16, gain, CUDA)
        assert pays(2 * 10**5, 1, gain, CUDA)


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
        Compiled(Wrong(), CPU)()


class Graphs:
    """Like what torch.compile returns for a GPU: each call takes back what the one before has returned."""

    def __init__(self, module, fails=()):
        self.module, self.fails, self.calls, self.kept = module, fails, 0, []

    def __len__(self):
        raise TypeError("no length")

    def __call__(self, *arguments):
        self.calls += 1
        assert all(p.grad is None for p in self.module.parameters())
        for kept in self.kept:
            kept.fill_(float("nan"))
        terms = self.module(*arguments)
        self.kept = [part.detach() for part in terms]
        if self.calls in self.fails:
            terms.loss.register_hook(self.fail)
        return terms

    def fail(self, gradient):
        raise RuntimeError("operation not permitted when stream is capturing")


def descended(**options):
    module, seen = Bowl(), []
    result = train(module, [{"params": [module.w]}], lambda step: (torch.ones(3),), lambda m: float(m.w.detach().sum()),
                   TrainConfig(steps=8, learning_rate=0.1), report=lambda state, terms: seen.append(terms.loss), **options)
    return [*seen, result.state["w"], module.w.detach()]


def test_results_outlive_the_next_call(monkeypatch):
    expected, made = descended(), []
    monkeypatch.setattr("torch.compile", lambda module, **_: made.append(Graphs(module)) or made[0])
    for found, same in zip(descended(compile=True), expected, strict=True):
        assert torch.equal(found, same)
    assert made[0].calls == 8


def test_where_graphs_cannot_be_recorded_the_fit_goes_on_without(monkeypatch):
    """The second call records, and the backward pass may be what fails."""
    expected, made = descended(), []
    monkeypatch.setattr("torch.compile", lambda module, **_: made.append(Graphs(module, fails={2})) or made[0])
    with pytest.warns(RuntimeWarning, match="cannot be compiled .RuntimeError: operation not permitted") as caught:
        found = descended(compile=True)
    assert len(caught) == 1
    assert made[0].calls == 2
    assert all(map(torch.equal, found, expected))


def test_what_fails_once_graphs_are_played_is_raised(monkeypatch):
    monkeypatch.setattr("torch.compile", lambda module, **_: Graphs(module, fails={TRIALS + 1}))
    with pytest.raises(RuntimeError, match="not permitted"):
        descended(compile=True)


def test_on_a_gpu_there_are_graphs_and_each_step_is_announced(monkeypatch):
    modes, steps, module = [], [], Bowl()
    monkeypatch.setattr("torch.compile", lambda module, **chosen: modes.append(chosen) or Graphs(module))
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: steps.append(1))
    for device, announced in ((CPU, 0), (CUDA, 2)):
        evaluate = Compiled(module, device)
        for _ in range(2):
            module.zero_grad(set_to_none=True)
            evaluate(torch.ones(3))
        assert len(steps) == announced
    assert modes == [{"dynamic": False, "mode": None}, {"dynamic": False, "mode": "reduce-overhead"}]


@pytest.mark.parametrize(("given", "kinds"), [
    ({}, ["PathLoss", "FokkerPlanckLoss"]), ({"drift_prior": lambda X, t: -X}, ["PathLoss"])])
def test_what_is_compiled(given, kinds, monkeypatch):
    made = []
    monkeypatch.setattr("torch.compile", lambda module, **_: made.append(type(module).__name__) or module)
    fit(compile=True, **given)
    assert made == kinds


def test_a_wrong_setting():
    with pytest.raises(ValueError, match="compile must be 'auto', True or False, got 'yes'"):
        fit(compile="yes")


def agree(model, batch, device, close):
    """Compares compiled with eager in loss and gradients, over as many calls as it takes to play graphs."""
    model.to(device)
    batch = [part.to(device) if isinstance(part, torch.Tensor) else part for part in batch]
    fast = Compiled(model, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "the steps cannot be compiled")
        for _ in range(TRIALS + 1):
            gradients = []
            for evaluate in (differentiated(model), fast):
                model.zero_grad(set_to_none=True)
                terms = evaluate(*batch)
                gradients.append([terms.loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
            for found, expected in zip(gradients[1], gradients[0], strict=True):
                close(found, expected, 1e-4)


def a_path(rng, constant=True):
    return initial_path([rng.standard_normal((40, 2)) for _ in range(3)], np.linspace(0, 1, 3), 3, rng, constant).float()


ELSEWHERE = [pytest.param(CPU, marks=pytest.mark.slow), pytest.param(CUDA, marks=pytest.mark.gpu)]


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("constant", [True, False])
def test_compiled_and_eager_agree(constant, where, rng, close):
    """Of a second path of the same shape, too."""
    for _ in range(2):
        path = a_path(rng, constant)
        model = PathLoss(path, torch.linspace(0, 1, 3), *((1e-3, 0.1) if constant else ()))
        noise = torch.randn(8, 2, path.noise_size)
        agree(model, (model.times, torch.randn(3, 50, 2), torch.linspace(0, 1, 8), noise), where, close)


@pytest.mark.parametrize("where", ELSEWHERE)
def test_compiled_nets_and_eager_agree(where, rng, close):
    noise = HollowNet(2, hidden=(8,))
    model = FokkerPlanckLoss(a_path(rng), HollowNet(2, hidden=(8,)), StateDiffusion(noise, torch.ones(2)), False)
    noise.readout.data.normal_(0, 0.1)
    model.density.requires_grad_(False)
    t, x = torch.rand(5), torch.randn(5, 20, 2)
    agree(model, (t, x[:, :1], t, x, LossWeights(0.03, 1.0, 0.01)), where, close)


@pytest.mark.slow
def test_a_step_of_the_path_is_one_graph(rng):
    """Where it breaks in two, a GPU plays as many more graphs."""
    model = PathLoss(a_path(rng), torch.linspace(0, 1, 3), 1e-3, 0.1)
    batch = (model.times, torch.randn(3, 50, 2), torch.linspace(0, 1, 8), torch.randn(8, 2, model.density.noise_size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)(*batch)
    assert torch.equal(found.loss, model(*batch).loss)


@pytest.mark.slow
def test_a_compiled_fit_is_the_fit_but_for_round_off():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits = [fit(compile=choice) for choice in (True, False)]
    a, b = (model.score_samples(X, T) for model in fits)
    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2)
