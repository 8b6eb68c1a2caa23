"""The main job from end to end: snapshots of a noisy predator-prey system in, a fitted SDE out.

Of the model's form is told only that populations are positive: drift and noise are free functions of the state, the same at
all times. The learned drift is then regressed on the terms of the true equations to see whether it found them.
"""

import runpy
import time
from pathlib import Path

import numpy as np

from fpsde import FokkerPlanckSDE, Snapshots, evaluate_steps, read_snapshots
from fpsde.evaluation import format_following, format_scores
from fpsde.plotting import save_figures

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "lotka_volterra.csv"
OUTPUT = ROOT / "outputs" / "lotka_volterra"


def compare_with_truth(model: FokkerPlanckSDE, data: Snapshots) -> None:
    """Prints learned parameters beside the true ones."""
    system = runpy.run_path(str(DATA.with_suffix(".py")))
    truth = system["TRUTH"]
    x = data.x
    prey, predator = x.T
    f, g = model.drift(x, data.times[0]), model.diffusion(x, data.times[0])
    a, b = np.linalg.lstsq(np.stack([prey, -prey * predator], 1), f[:, 0], rcond=None)[0]
    d, c = np.linalg.lstsq(np.stack([prey * predator, -predator], 1), f[:, 1], rcond=None)[0]
    s = np.sqrt((g**2).sum() / (x**2).sum())
    print("\nparameter   true  learned")
    for name, value in (("a", a), ("b", b), ("c", c), ("d", d), ("s", s)):
        print(f"{name:>9}  {truth[name]:5.3f}  {value:7.3f}")
    for name, learned, true in (("drift", f, system["drift"](x)), ("noise", g, system["diffusion"](x))):
        error = np.sqrt(((learned - true) ** 2).sum() / (true**2).sum())
        print(f"{name}: relative error {100 * error:.1f} %, root mean square over the data")


def main() -> None:
    """Fits, compares, simulates and draws."""
    start = time.monotonic()
    data = read_snapshots(DATA, time="time")
    print(f"{len(data.t)} points of {', '.join(data.names)} at {len(data.times)} times, each point seen once")
    model = FokkerPlanckSDE(8, drift="autonomous", diffusion="state", positive=True, max_steps=1000, random_state=0,
                            verbose=1)
    model.fit(data.x, data.t)
    compare_with_truth(model, data)
    scores = evaluate_steps(model, data, max_points=200)
    print(f"\n{format_scores(scores)}\n{format_following(scores)}")

    OUTPUT.mkdir(parents=True, exist_ok=True)
    model.save(OUTPUT / "model.fpsde")
    times = np.linspace(data.times[0], data.times[-1], 101)
    paths = model.simulate(data.at(data.times[0])[:100], times, random_state=0, verbose=0)
    np.savez_compressed(OUTPUT / "paths.npz", times=times, paths=paths)
    figures = save_figures(model, data, OUTPUT)
    print(f"\n{time.monotonic() - start:.0f} s. Written to {OUTPUT.relative_to(ROOT)}: model.fpsde, paths.npz, "
          + ", ".join(path.name for path in figures))


if __name__ == "__main__":
    main()
