"""Laws that hold for any data, tried on data that hypothesis makes up: order, units, a shift of time, and round trips."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fpsde import FokkerPlanckSDE, Snapshots, energy_distance, mmd, read_snapshots, wasserstein
from fpsde.cli import _parse_times
from fpsde.coordinates import Coordinates
from fpsde.metrics import transport_midpoint
from fpsde.reading import as_cell, read_start
from fpsde.snapshots import SnapshotError, floats

settings.register_profile("fpsde", deadline=None, max_examples=25, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
settings.load_profile("fpsde")

NUMBERS = st.floats(-100, 100, width=32)
POWERS = st.integers(-20, 20).map(lambda k: 2.0**k)
SHIFTS = st.integers(-64, 64).map(float)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def clouds(draw, least=2):
    """Two samples of the same dimension."""
    d = draw(st.integers(1, 3))
    return tuple(draw(arrays(np.float64, (draw(st.integers(least, 6)), d), elements=NUMBERS)) for _ in range(2))


@st.composite
def data(draw):
    """Snapshots that can be used: points and times, in any order."""
    d, counts = draw(st.integers(1, 3)), draw(st.lists(st.integers(3, 6), min_size=2, max_size=4))
    times = draw(st.lists(st.integers(-50, 50), min_size=len(counts), max_size=len(counts), unique=True))
    x = draw(arrays(np.float64, (sum(counts), d), elements=NUMBERS))
    t = np.repeat(np.array(times, dtype=float), counts)
    order = np.random.default_rng(draw(SEEDS)).permutation(len(t))
    assume((x.std(0) > 1e-3).all())
    return x[order], t[order]


DISTANCES = {"W1": wasserstein, "W2": lambda x, y: wasserstein(x, y, 2), "energy": energy_distance, "MMD": mmd}
# What a distance is multiplied by where space is: a squared one by nothing, its kernel's width goes along.
UNITS = {"W1": 1, "W2": 1, "energy": 1, "MMD": 0}


@pytest.mark.parametrize("name", DISTANCES)
@given(pair=clouds(), unit=POWERS, shift=SHIFTS, seed=SEEDS)
def test_distances_know_no_order_no_origin_and_one_unit(name, pair, unit, shift, seed):
    (x, y), distance, rng = pair, DISTANCES[name], np.random.default_rng(seed)
    if name in ("W1", "W2") and x.shape[1] > 1:
        x, y = x[:min(len(x), len(y))], y[:min(len(x), len(y))]
    plain = distance(x, y)
    close = pytest.approx(plain, rel=1e-9, abs=1e-9)
    assert distance(x[rng.permutation(len(x))], y[rng.permutation(len(y))]) == close
    columns = rng.permutation(x.shape[1])
    assert distance(x[:, columns], y[:, columns]) == close
    assert distance(y, x) == close
    moved = distance(unit * x + shift, unit * y + shift)
    size = unit ** UNITS[name]
    assert moved == pytest.approx(plain * size, rel=1e-4, abs=1e-6 * max(size, 1))
    if name in ("W1", "W2"):
        # W2 through squares of differences loses half the digits near zero.
        assert distance(x, x) == pytest.approx(0, abs=1e-6)
        assert plain >= 0


@given(pair=clouds())
def test_transport_keeps_the_mean_on_its_way(pair):
    x, y = (part[:min(map(len, pair))] for part in pair)
    for fraction in (0.0, 0.25, 1.0):
        middle, mass = transport_midpoint(x, y, fraction)
        assert np.allclose(mass @ middle, (1 - fraction) * x.mean(0) + fraction * y.mean(0), atol=1e-9)


@given(given=data(), seed=SEEDS, unit=POWERS, clock=POWERS, shift=SHIFTS)
def test_snapshots_change_only_as_they_must(given, seed, unit, clock, shift):
    x, t = given
    plain, order = Snapshots.of(x, t), np.random.default_rng(seed).permutation(len(t))
    shuffled = Snapshots.of(x[order], t[order])
    assert np.array_equal(shuffled.times, plain.times)
    for a, b in zip(plain.groups(), shuffled.groups(), strict=True):
        assert sorted(map(tuple, a)) == sorted(map(tuple, b))
    columns = np.random.default_rng(seed).permutation(x.shape[1])
    assert np.array_equal(Snapshots.of(x[:, columns], t).x, plain.x[:, columns])
    moved = Snapshots.of(x * unit, t * clock + shift)
    assert np.array_equal(moved.x, plain.x * unit)
    assert len(moved.times) == len(plain.times)


@given(given=data(), weights=st.integers(1, 2**20), factor=POWERS)
def test_weights_count_by_their_ratios(given, weights, factor):
    x, t = given
    w = np.random.default_rng(weights).integers(1, 5, len(t)).astype(float)
    plain, other = Snapshots.of(x, t, weights=w), Snapshots.of(x, t, weights=w * factor)
    assert plain.weights is other.weights is None or np.array_equal(plain.weights, other.weights)


@given(given=data(), unit=POWERS, clock=POWERS, shift=SHIFTS)
def test_dimensionless_coordinates_know_no_units(given, unit, clock, shift):
    x, t = given
    plain = Coordinates.of(Snapshots.of(x, t), (False,) * x.shape[1])
    other = Coordinates.of(Snapshots.of(x * unit, t * clock + shift), (False,) * x.shape[1])
    z = plain.inside(torch.as_tensor(x))
    assert torch.allclose(other.inside(torch.as_tensor(x * unit)), z, atol=1e-9)
    assert torch.allclose(other.time(torch.as_tensor(t * clock + shift)), plain.time(torch.as_tensor(t)), atol=1e-6)
    assert torch.allclose(plain.outside(z), torch.as_tensor(x), atol=1e-9)


@given(given=data())
def test_what_is_written_is_read(given, tmp_path):
    x, t = given
    names = [f"n{i}" for i in range(x.shape[1])]
    rows = [",".join(["t", *names])] + [",".join(map(repr, map(float, (s, *p)))) for s, p in zip(t, x, strict=True)]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    np.savez(tmp_path / "x.npz", X=x, t=t)
    for name in ("x.csv", "x.npz"):
        found = read_snapshots(tmp_path / name)
        assert np.array_equal(found.x, x)
        assert np.array_equal(found.t, t)
        assert np.array_equal(read_start(tmp_path / name), x[t == t.min()])


@given(content=st.one_of(st.text(max_size=60), st.lists(st.lists(st.sampled_from(
    ["day", "a", "", "1", "2.5", "nan", "-", '"', "=1", ";", "\x00", "é"]), max_size=4), max_size=6).map(
        lambda rows: "\n".join(map(",".join, rows)))))
def test_any_text_is_read_or_refused_in_one_line(content, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(content, encoding="utf-8", errors="surrogatepass", newline="")
    for read in (read_snapshots, read_start):
        said = f"{path}: "
        try:
            read(path)
        except SnapshotError as error:
            said = str(error)
        assert said.startswith(f"{path}: ")
        assert len(said.splitlines()) == 1


@given(name=st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1, max_size=8).filter(lambda s: s == s.strip()))
def test_names_are_no_formulas_and_come_back(name, tmp_path_factory):
    path, out = tmp_path_factory.mktemp("names") / "x.csv", io.StringIO()
    assume(name not in ("time", "path"))
    csv.writer(out, lineterminator="\n").writerows([["path", "time", as_cell(name)], [0, 0, 1], [0, 1, 2]])
    path.write_text(out.getvalue(), encoding="utf-8")
    cell = next(csv.reader(io.StringIO(out.getvalue())))[2]
    assert cell[0] not in "=+-@\t\r"
    assert read_start(path, "time", (name,)).tolist() == [[1]]


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A0", "+1", "-1", "@SUM(A1)", "'=1", "''@", "plain", "it's"])
def test_names_that_could_be_formulas(name):
    assert as_cell(name) == (name if name in ("plain", "it's") else f"'{name}")


@given(values=arrays(np.float64, st.integers(0, 5)), mask=st.integers(0, 31))
def test_masked_entries_are_missing(values, mask):
    hidden = np.array([bool(mask >> k & 1) for k in range(len(values))], dtype=bool)
    found = floats(np.ma.array(values, mask=hidden), "values")
    assert np.isnan(found[hidden]).all()
    assert np.array_equal(found[~hidden], values[~hidden], equal_nan=True)


@given(first=st.integers(-100, 100), count=st.integers(1, 200), step=st.sampled_from([0.1, 0.25, 1.0, 3.0, 1e-3]))
def test_ranges_of_times_hold_their_ends(first, count, step):
    last = first + count * step
    times = _parse_times(f"{first}:{last!r}:{step}")
    assert len(times) == count + 1
    assert times[0] == first
    assert times[-1] == pytest.approx(last, rel=1e-12)


@pytest.fixture(scope="module")
def model():
    return FokkerPlanckSDE.load(Path(__file__).parent / "data" / "model_3.fpsde", device="cpu")


@given(seed=SEEDS)
def test_a_fitted_model_answers_point_by_point(seed, model):
    """Permuted, cut or repeated points have permuted, cut or repeated answers."""
    rng = np.random.default_rng(seed)
    x, t = rng.normal(size=(7, 2)), rng.uniform(0, 1, 7)
    order = rng.integers(0, 7, rng.integers(1, 12))
    for answer in (model.drift, model.diffusion, model.score_samples):
        assert np.allclose(answer(x[order], t[order]), answer(x, t)[order], rtol=1e-4, atol=1e-5)
    # An autonomous drift knows no time.
    assert np.allclose(model.drift(x, t), model.drift(x, 0.0), rtol=1e-6, atol=1e-6)
