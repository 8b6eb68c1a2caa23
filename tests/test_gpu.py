"""What a GPU must do, from a file of snapshots to figures; other tests go there with --device cuda too."""

import numpy as np
import pytest
from click.testing import CliRunner
from problems import rotating_snapshots

from fpsde import FokkerPlanckSDE
from fpsde.cli import main

X, T = rotating_snapshots(60, np.array([0.0, 0.5, 1.0, 1.5]))
KINDS = [("time", 1), ("autonomous", 1), ("gradient", 1), ("autonomous", 2)]

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("drift", "members"), KINDS)
def test_fit(drift, members, device, tmp_path):
    model = FokkerPlanckSDE(2, n_members=members, drift=drift, max_steps=12, hidden=(8,), random_state=0,
                            device=str(device)).fit(X, T)
    assert all(tensor.is_cuda for module in (model.sde_, model.density_) for tensor in module.state_dict().values())
    assert np.isfinite(model.simulate(X[:5], [0, 1.5])).all()
    assert np.isfinite(model.identifiability().worse).all()
    model.save(tmp_path / "m.fpsde")
    for name in (str(device), "cpu"):
        loaded = FokkerPlanckSDE.load(tmp_path / "m.fpsde", device=name)
        assert loaded.sde_.coordinates.centre.device.type == name.partition(":")[0]
        for answer in (lambda m: m.drift(X, T), lambda m: m.diffusion(X, T), lambda m: m.score_samples(X, T)):
            assert np.allclose(answer(loaded), answer(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("drift", "members"), KINDS)
def test_command_line(drift, members, device, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    data, model = tmp_path / "data.npz", tmp_path / "m.fpsde"
    np.savez(data, X=X, t=T)
    fitted = run("fit", data, "-o", model, "--drift", drift, "--members", members, "--steps", 12, "--components", 2,
                 "--device", device, "--quiet")
    # Loaded by device="auto": on the GPU again.
    assert fitted.startswith(run("info", model))
    run("info", model, data)
    run("evaluate", model, data, "--points", 20)
    run("simulate", model, "--start", data, "--times", "0,1.5", "-o", tmp_path / "paths.npz", "--quiet")
    run("plot", model, data, "-o", tmp_path / "figures")
