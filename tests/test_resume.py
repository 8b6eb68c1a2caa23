import errno
import resource
import shutil
import signal
import warnings

import numpy as np
import pytest
import torch
from problems import rotating_snapshots

from fpsde import FokkerPlanckSDE, resume
from fpsde.resume import CheckpointError, saved_states
from fpsde.state_file import read_state, write_state

X, T = rotating_snapshots(40, np.array([0.0, 0.5, 1.0]))
QUICK = {"n_components": 2, "max_steps": 10, "hidden": (4,), "random_state": 0, "device": "cpu"}


class Killed(BaseException):
    pass


def make(**settings):
    return FokkerPlanckSDE(**{**QUICK, **settings})


def fit(folder=None, seconds=0.0, x=X, t=T, weights=None, **settings):
    return make(**settings).fit(x, t, weights, checkpoint=folder, checkpoint_seconds=seconds)


def assert_same(model, other):
    """Asserts that two fits are the same bit for bit, in all that they tell."""
    for parts, others in zip(model.members_, other.members_, strict=True):
        for part, same in zip(parts, others, strict=True):
            state, expected = part.state_dict(), same.state_dict()
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[name], expected[name]) for name in state)
    assert model.history_ == other.history_
    assert model.summary_ == other.summary_


@pytest.fixture
def life(monkeypatch):
    """Sets how many states are saved, the last of them or none of it written, before a fit is killed."""
    def of(saves, last_written=True):
        left = [saves]

        def write(path, state):
            left[0] -= 1
            if left[0] > 0 or last_written:
                write_state(path, state)
            if not left[0]:
                raise Killed

        monkeypatch.setattr("fpsde.resume.write_state", write)
    return of


@pytest.mark.parametrize("settings", [
    {"drift": "time", "n_components": 20},
    {"drift": "time", "diffusion": "constant", "n_members": 2, "max_steps": 5},
    {"drift": "autonomous"},
    {"drift": "autonomous", "n_members": 2, "max_steps": 5, "positive": False, "growth": "counts"},
    {"drift": "gradient", "diffusion": 0.5},
], ids=str)
def test_a_fit_that_is_killed_again_and_again_is_the_same_bit_for_bit(settings, life, tmp_path):
    with torch.random.fork_rng(), warnings.catch_warnings():
        expected = fit(**settings)
    lives = 0
    while True:
        lives += 1
        # The first of a life's saves is where the one before ended: this one gets one or two steps further.
        life(3, last_written=bool(lives % 2))
        torch.manual_seed(lives)
        try:
            model = fit(tmp_path, **settings)
            break
        except Killed:
            assert len(saved_states(tmp_path)) <= 3
    assert lives > 7
    assert_same(model, expected)
