import threading

import pytest
import torch
from problems import rotating_snapshots

from fpsde import FokkerPlanckSDE
from fpsde.threads import one_thread, side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_that_do_not_spin_are_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with one_thread(torch.device("cpu")):
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_one_thread_is_given_back(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with one_thread(torch.device("cpu")):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def ask(part):
    """What a part's thread is like."""
    return threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled(), part


@pytest.mark.usefixtures("two_threads")
def test_parts_have_the_cores_that_operations_leave_idle(monkeypatch):
    """In the order they were given, each with one thread for its operations and as little need of gradients."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    meet = threading.Barrier(2, timeout=60)

    def both(part):
        meet.wait()
        return ask(part)

    with one_thread(CPU), torch.no_grad():
        idents, threads, graphs, parts = zip(*side_by_side(both, range(4)), strict=True)
        assert len(set(idents)) == 2
        assert threads == (1,) * 4
        assert graphs == (False,) * 4
        assert parts == tuple(range(4))
    here = threading.get_ident()
    assert {ident for ident, *_ in side_by_side(ask, range(4))} == {here}
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    with one_thread(CPU):
        assert {ident for ident, *_ in side_by_side(ask, range(4))} == {here}


@pytest.mark.usefixtures("two_threads")
def test_an_error_of_one_part_is_that_of_all(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)

    def fails(part):
        raise ArithmeticError(f"part {part}")

    with one_thread(CPU), pytest.raises(ArithmeticError, match="part 0"):
        side_by_side(fails, range(5))


def test_a_fit_is_the_same_on_any_number_of_cores(monkeypatch):
    """Bit for bit, where the moment equations are solved side by side."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    x, t = rotating_snapshots(100, [0.0, 1.0, 2.0, 3.0])
    before, drifts = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            drifts.append(FokkerPlanckSDE(2, drift="autonomous", max_steps=20, device="cpu", random_state=0).fit(x, t).drift(x, 0.0))
    finally:
        torch.set_num_threads(before)
    assert (drifts[0] == drifts[1]).all()
