"""Generates the bundled snapshots: a noisy predator-prey system, unpaired, at eleven times.

    dx = (a x - b x y) dt + s x dW_1
    dy = (d x y - c y) dt + s y dW_2

with a = 1, b = 0.4, c = 0.4, d = 0.1 and s = 0.05. Run it to write `lotka_volterra.csv` beside itself.
"""

import csv
from pathlib import Path

import numpy as np

TRUTH = {"a": 1.0, "b": 0.4, "c": 0.4, "d": 0.1, "s": 0.05}
TIMES = np.arange(11.0)
POINTS = 400
STEP = 0.005


def drift(x: np.ndarray) -> np.ndarray:
    """The true drift at points of shape (n, 2)."""
    prey, predator = x.T
    return np.stack([TRUTH["a"] * prey - TRUTH["b"] * prey * predator,
                     TRUTH["d"] * prey * predator - TRUTH["c"] * predator], 1)


def diffusion(x: np.ndarray) -> np.ndarray:
    """The true diffusion at points of shape (n, 2)."""
    return TRUTH["s"] * x


def snapshot(time: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Runs n fresh systems to the given time; the logarithm of the state is integrated, so it stays positive."""
    log_x = np.log(np.array([5.0, 4.0]) * np.exp(0.1 * rng.standard_normal((n, 2))))
    for _ in range(round(time / STEP)):
        x = np.exp(log_x)
        log_x += (drift(x) / x - 0.5 * TRUTH["s"] ** 2) * STEP + TRUTH["s"] * np.sqrt(STEP) * rng.standard_normal((n, 2))
    return np.exp(log_x)


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(2026)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time", "prey", "predator"])
        for time in TIMES:
            writer.writerows([f"{time:g}", f"{prey:.5f}", f"{predator:.5f}"]
                             for prey, predator in snapshot(time, POINTS, rng))


if __name__ == "__main__":
    main()
