import io

import pytest
import torch
from problems import Bowl, Terms
from torch import nn

from fpsde.progress import Progress
from fpsde.train import TrainConfig, TrainingError, _Skips, choose_device, singular_matrices, train


def run(bad=(), steps=300, **options):
    module, seen = Bowl(), []
    result = train(
        module, [{"params": list(module.parameters())}],
        lambda step: (torch.full((3,), float("nan") if step in bad else 1.0),),
        lambda m: float((m.w.detach() - 1).square().sum()), TrainConfig(steps=steps, learning_rate=0.1, **options),
        report=lambda state, terms: seen.append(state))
    return module, result, seen


def test_descends_and_returns_the_best_averaged_state():
    module, result, seen = run()
    assert result.best_score < 1e-3
    assert torch.allclose(result.state["w"], torch.ones(3), atol=0.05)
    assert [s.step for s in seen] == list(range(1, 301))


def test_step_that_is_not_finite_never_reaches_the_parameters():
    module, result, _ = run(bad={3, 4, 50, 51, 52})
    assert result.skipped == 5
    assert torch.isfinite(module.w).all()
    assert result.best_score < 1e-3


def test_gradient_that_is_not_finite_is_skipped_too():
    module = Bowl()
    module.w.register_hook(lambda g: torch.full_like(g, float("inf")))
    with pytest.raises(TrainingError, match="4 steps in a row"):
        train(module, [{"params": [module.w]}], lambda step: (torch.ones(3),), lambda m: 0.0,
              TrainConfig(steps=10, patience=4))
    assert torch.equal(module.w.detach(), torch.zeros(3))


def test_stops_with_a_clear_message_when_it_keeps_happening():
    with pytest.raises(TrainingError, match="not finite in 25 steps in a row, the last at step 35; lower the learning rate"):
        run(bad=range(10, 300))


def test_counts_that_are_read_seldom_miss_nothing():
    skips = _Skips(torch.device("cpu"))
    skips.every = 8
    seen = []
    for step, good in enumerate([True, False, False, False, True, True, False, True]):
        assert float(skips.count(torch.tensor(good))) == (not good)
        seen.append(skips.read(step))
    assert seen == [0] * 7 + [3]
    assert skips.total == 4


def test_no_finite_score_is_an_error_and_not_the_initial_state():
    module = Bowl()
    with pytest.raises(TrainingError, match="after none of 5 steps was the score"):
        train(module, [{"params": [module.w]}], lambda step: (torch.ones(3),), lambda m: float("nan"), TrainConfig(steps=5))


def test_best_state_is_not_the_last():
    """From step 150 on the target lies elsewhere, and the score does not follow."""
    module = Bowl()
    result = train(module, [{"params": [module.w]}], lambda step: (torch.full((3,), 1.0 if step < 150 else 5.0),),
                   lambda m: float((m.w.detach() - 1).square().sum()),
                   TrainConfig(steps=300, learning_rate=0.1, check_every=10))
    assert 50 < result.best_step <= 160
    assert torch.allclose(result.state["w"], torch.ones(3), atol=0.05)
    assert module.w.min() > 2


class Slope(nn.Module):
    """A loss of known gradient."""

    def __init__(self):
        super().__init__()
        self.w, self.slow = nn.Parameter(torch.zeros(1, dtype=torch.float64)), nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, gradient):
        return Terms((gradient * self.w + self.slow).sum())


def slide(gradients, **options):
    """Places of both parameters after every step, shape (steps, 2), and the result; the slow one has a rate of its own."""
    module, places = Slope(), []
    result = train(module, [{"params": [module.w]}, {"params": [module.slow], "lr": 0.01}], lambda step: (gradients[step],),
                   lambda m: float(m.w.detach()), TrainConfig(steps=len(gradients), learning_rate=0.1, **options),
                   report=lambda *_: places.append([module.w.item(), module.slow.item()]))
    return torch.tensor(places, dtype=torch.float64), result


def test_rates_fall_as_half_a_cosine_wave():
    """Under a constant gradient every step of Adam is as long as its rate."""
    places, _ = slide([1.0] * 50, final_rate=0.04)
    steps = -torch.diff(places, dim=0, prepend=torch.zeros(1, 2))
    share = 0.04 + 0.96 * 0.5 * (1 + torch.cos(torch.pi * torch.arange(50, dtype=torch.float64) / 50))
    assert torch.allclose(steps, share[:, None] * torch.tensor([0.1, 0.01], dtype=torch.float64), rtol=1e-6)
    assert float(steps[-1, 0]) == pytest.approx(0.1 * 0.04, rel=0.03)


def test_large_gradients_are_clipped():
    """Adam keeps the mean of gradients and of their squares, here of (5, 0) after clipping and of (1, 1)."""
    places, _ = slide([1e6, 1.0], clip=5.0)
    mean, square = (0.09 * 5 + 0.1) / 0.19, (0.0099 * 25 + 0.01) / 0.0199
    assert float(places[1, 0]) == pytest.approx(-0.1 * (1 + 0.51 * mean / square**0.5), rel=1e-5)


def test_the_state_is_an_average_that_forgets():
    places, result = slide([1.0, -1.0, 0.5, 0.7, 1.0, 2.0, 1.0, 1.0], memory=0.7, check_every=100)
    weights = 0.3 * 0.7 ** torch.arange(7, -1, -1, dtype=torch.float64)
    weights[0] /= 0.3
    assert float(result.state["w"]) == pytest.approx(float(weights @ places[:, 0]), rel=1e-12)
    assert result.best_step == 8


def test_singular_matrices_are_named_in_words_of_the_data():
    with pytest.raises(TrainingError, match="look for outliers and repeated points"), singular_matrices():
        torch.linalg.cholesky(torch.zeros(2, 2))


def test_gradients_of_what_is_solved_for_do_not_pile_up():
    """Their memory is the last call's where steps are played back as graphs."""
    bowl, found = Bowl(), []
    bowl.solved = nn.Parameter(torch.ones(3))

    def draw(step):
        return (torch.ones(3),)

    def look(module, arguments):
        found.append(bowl.solved.grad)
        bowl.solved.grad = torch.ones(3)

    bowl.register_forward_pre_hook(look)
    train(bowl, [{"params": [bowl.w]}], draw, lambda module: 0.0, TrainConfig(steps=3))
    assert found == [None] * 3


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "mps", "xpu", "meta", "cpu:0", "cuda:", "cuda:-1", 0):
        with pytest.raises(ValueError, match="device must be 'auto', 'cpu', 'cuda' or 'cuda:0' and so on, got"):
            choose_device(name)
    for name in (f"cuda:{torch.cuda.device_count()}", "cuda:99", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ValueError, match=r"this torch sees (no|\d+) GPU; use"):
            choose_device(name)


def test_time_left_is_told_by_the_last_steps_and_not_by_a_rest(monkeypatch, capsys):
    clock = iter([0.0, 20.0, 40.0, 500.0, 512.0])
    monkeypatch.setattr("fpsde.progress.time.monotonic", lambda: next(clock))
    progress = Progress("fitting", 100)
    progress.update(10)
    progress.stage(10, "solving")
    progress.update(11)
    progress.update(17)
    assert capsys.readouterr().err.splitlines() == [
        "fitting: 10/100 180 s left", "fitting: 10/100 solving", "fitting: 17/100 166 s left"]


def test_a_bar_shows_the_stage(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress("fitting", 10, stream=stream) as progress:
        progress.stage(0, "solving for drift and noise")
        progress.update(10)
    assert "solving for drift and noise" in stream.getvalue()
    assert "10/10" in stream.getvalue()


def test_progress_is_plain_lines_without_a_terminal_and_silent_when_asked(monkeypatch, capsys):
    monkeypatch.setattr("fpsde.progress.SECONDS_WORTH_A_LINE", 0.0)
    for silent in (False, True):
        with Progress("fitting", 10, silent=silent) as progress:
            progress.update(10, {"residual": 0.5})
        text = capsys.readouterr().err
        assert text == ("" if silent else "fitting: 10/10 residual 0.5 0 s left\n")
