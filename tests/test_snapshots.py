import numpy as np
import pytest

from fpsde import Snapshots, read_snapshots
from fpsde.snapshots import SnapshotError, mean_and_variance

GOOD = "day,a,b\n" + "".join(f"{d},{d + 0.1 * i},{i}\n" for d in (0, 3) for i in range(5))


@pytest.fixture
def csv_file(tmp_path):
    def write(text):
        path = tmp_path / "data.csv"
        path.write_text(text)
        return path
    return write


def test_csv_with_a_header(csv_file):
    data = read_snapshots(csv_file(GOOD), "day")
    assert data.names == ("a", "b")
    assert data.x.shape == (10, 2)
    assert data.times.tolist() == [0, 3]
    assert np.allclose(data.at(3)[:, 0], 3 + 0.1 * np.arange(5))
    assert read_snapshots(csv_file(GOOD)).names == ("a", "b")
    assert read_snapshots(csv_file(GOOD), "day", ("b",)).names == ("b",)


def test_bytes_that_excel_puts_first(csv_file, tmp_path):
    path = tmp_path / "bom.csv"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_snapshots(path, "day").dim == 2


@pytest.mark.parametrize(("text", "message"), [
    ("", "the file is empty"),
    ("day,a\n", "the file is empty"),
    (GOOD.replace("day", "when"), "no column 'day'; there are when, a, b"),
    (GOOD + "3,x,1\n", "column 'a' is not numeric: line 12 has 'x'"),
    (GOOD + "3,,1\n3,nan,2\n", r"column 'a' has missing or infinite values in 2 rows \(lines 12, 13\)"),
    (GOOD + "3,inf,1\n", r"column 'a' has missing or infinite values in 1 rows \(lines 12\)"),
    (GOOD + "3,1\n", "line 12 has 2 fields, the header has 3"),
    (GOOD.replace("\n3,", "\n0,"), "two or more times are needed"),
    (GOOD + "7,1,1\n", "fewer than 3 points, the first is 7 with 1"),
    ("day\n0\n1\n", "no column beside the time"),
    ("day,a\n" + "0,2\n1,2\n" * 5, "'a' never varies"),
])
def test_bad_csv_says_what_and_where(text, message, csv_file):
    with pytest.raises(SnapshotError, match=message):
        read_snapshots(csv_file(text), "day")


def test_npz_in_both_layouts(tmp_path, rng):
    x = rng.normal(size=(3, 6, 2))
    np.savez(tmp_path / "stack.npz", Xs=x, dts=np.arange(3.0))
    np.savez(tmp_path / "flat.npz", X=x.reshape(-1, 2), t=np.repeat(np.arange(3), 6))
    a, b = read_snapshots(tmp_path / "stack.npz"), read_snapshots(tmp_path / "flat.npz", "t")
    assert np.array_equal(a.x, b.x)
    assert np.array_equal(a.t, b.t)


def test_bad_npz(tmp_path, rng):
    def check(message, time=None, features=(), **arrays):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(SnapshotError, match=message):
            read_snapshots(tmp_path / "bad.npz", time, features)

    check("no array 'z'", time="z", X=np.zeros((4, 2)), t=np.zeros(4))
    check("which array to use, name it with --time", a=np.zeros(3))
    check("holds objects", X=np.array([{}] * 4, dtype=object), t=np.zeros(4))
    check("not numeric", X=np.array([["a"]] * 4), t=np.zeros(4))
    check("must have shape", X=np.zeros((4, 2)), t=np.zeros(3))


@pytest.mark.parametrize("name", ["missing.csv", "data.xlsx"])
def test_files_that_are_not_there_or_unknown(name, tmp_path):
    if name.endswith("xlsx"):
        (tmp_path / name).write_text("x")
    with pytest.raises(SnapshotError, match="no such file|unknown format"):
        read_snapshots(tmp_path / name)


def test_damaged_npz(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(SnapshotError, match="cannot be read"):
        read_snapshots(tmp_path / "x.npz")


def test_split_keeps_every_time(rng):
    data = Snapshots.of(rng.normal(size=(130, 2)), np.repeat([0, 1], [100, 30]))
    kept, held = data.split(0.1, rng)
    assert [len(x) for x in held.groups()] == [10, 3]
    assert len(kept.t) + len(held.t) == 130
    few = Snapshots.of(rng.normal(size=(6, 2)), np.repeat([0, 1], 3))
    assert few.split(0.5, rng)[1] is None


@pytest.mark.parametrize(("scale", "times", "message"), [
    (1e200, [0, 1], "coordinate 'x1' has .*e.20. in row 0, beyond 1e.30; drop"),
    (1.0, [0, 1e300], "times from 0 to 1e.300 are out of range"),
    (1.0, [0, 1e-9, 1], "times 0 and 1e-09 are closer than 1e-06 of the time from first to last; merge"),
])
def test_numbers_that_floating_point_would_lose(scale, times, message, rng):
    x = scale * (1 + rng.random(size=(5 * len(times), 2)))
    with pytest.raises(SnapshotError, match=message):
        Snapshots.of(x, np.repeat(times, 5))


def test_values_that_are_not_finite_are_located(rng):
    x = rng.normal(size=(10, 2))
    x[7, 1] = np.nan
    with pytest.raises(SnapshotError, match="row 7, coordinate 'x2'"):
        Snapshots.of(x, np.repeat([0, 1], 5))


def test_weights_count_within_a_time_only(rng):
    x, t, w = rng.normal(size=(10, 2)), np.repeat([0, 1], 5), rng.uniform(1, 2, 10)
    data = Snapshots.of(x, t, weights=w)
    assert [float(v.mean()) for v in data.group_weights()] == pytest.approx([1, 1])
    assert np.allclose(data.weights / w, np.repeat([data.weights[0] / w[0], data.weights[5] / w[5]], 5))
    assert np.array_equal(Snapshots.of(x, t, weights=w * np.where(t == 0, 8, 0.25)).weights, data.weights)
    assert np.allclose(Snapshots.of(x, t, weights=w * np.where(t == 0, 3, 0.7)).weights, data.weights, rtol=1e-14)
    assert Snapshots.of(x, t, weights=np.where(t == 0, 3.0, 0.7)).weights is None


def test_points_of_no_weight_are_left_out(rng):
    x, t, w = rng.normal(size=(10, 2)), np.repeat([0, 1], 5), np.array([1.0, 0, 2, 3, 1, 1, 2, 0, 0, 1])
    data, rest = Snapshots.of(x, t, weights=w), Snapshots.of(x[w > 0], t[w > 0], weights=w[w > 0])
    assert np.array_equal(data.x, rest.x)
    assert np.array_equal(data.t, rest.t)
    assert np.array_equal(data.weights, rest.weights)


@pytest.mark.parametrize(("weights", "message"), [
    (np.ones(9), r"weights must have shape \(10,\), one for each point, got \(9,\)"),
    (1.0, r"weights must have shape"),
    ([1, -2] + [1] * 8, r"1 weights are negative, missing or infinite, the first in row 1 \(-2\)"),
    ([1] * 8 + [np.nan, np.inf], "2 weights are negative, missing or infinite, the first in row 8"),
    (np.zeros(10), "all weights are zero"),
    ([1] * 5 + [0] * 5, "1 of 2 times have fewer than 3 points of positive weight, the first is 1 with 0"),
    ([0, 0, 0, 1, 1] + [1] * 5, "fewer than 3 points of positive weight, the first is 0 with 2"),
])
def test_bad_weights_are_named(weights, message, rng):
    with pytest.raises(SnapshotError, match=message):
        Snapshots.of(rng.normal(size=(10, 2)), np.repeat([0, 1], 5), weights=weights)


def test_split_takes_the_weights_along(rng):
    x, w = rng.normal(size=(130, 1)), rng.uniform(1, 2, 130)
    data = Snapshots.of(x, np.repeat([0, 1], [100, 30]), weights=w)
    for part in data.split(0.1, rng):
        assert [float(v.mean()) for v in part.group_weights()] == pytest.approx([1, 1])
        for time in (0, 1):
            rows = [int(np.flatnonzero(x[:, 0] == v)[0]) for v in part.at(time)[:, 0]]
            assert np.ptp(part.weights[part.t == time] / w[rows]) < 1e-12


def test_mean_and_variance_are_those_of_repeated_points(rng):
    x, w = rng.normal(size=(20, 3)), rng.integers(1, 5, 20)
    for weighted, repeated in zip(mean_and_variance(x, w.astype(float)), mean_and_variance(x.repeat(w, 0)), strict=True):
        assert np.allclose(weighted, repeated, rtol=1e-12)


def test_a_thinned_sample_has_the_weighted_law(rng):
    """Uniform points of weight x have mean 2/3; no point comes twice, and without weights all stay."""
    x = rng.uniform(size=(8000, 1))
    t = np.repeat([0, 1], 4000)
    data = Snapshots.of(x, t, weights=x[:, 0] * np.where(t == 0, 5, 1))
    for points in data.thinned(rng).groups():
        assert len(np.unique(points)) == len(points)
        assert points.mean() == pytest.approx(2 / 3, abs=5 * np.sqrt(1 / 18 / 2000))
    plain = Snapshots.of(x, t)
    assert plain.thinned(rng) is plain
    with pytest.raises(SnapshotError, match="weights at time 0 are too uneven"):
        Snapshots.of(x, t, weights=np.where(np.arange(8000) == 7, 1, 1e-12)).thinned(rng)


def test_weights_are_read_from_a_column_or_an_array(csv_file, tmp_path, rng):
    path = csv_file("day,a,w\n" + "".join(f"{d},{d + 0.1 * i},{i}\n" for d in (0, 3) for i in range(5)))
    data = read_snapshots(path, "day", weights="w")
    assert data.names == ("a",)
    assert np.allclose(data.weights, np.tile([0.4, 0.8, 1.2, 1.6], 2))
    assert read_snapshots(path, "day").names == ("a", "w")
    with pytest.raises(SnapshotError, match="no column 'v'; there are day, a, w"):
        read_snapshots(path, "day", weights="v")
    with pytest.raises(SnapshotError, match=r"column 'w' has missing or infinite values in 1 rows \(lines 12\)"):
        read_snapshots(csv_file("day,a,w\n" + "0,1,1\n" * 5 + "3,2,1\n" * 5 + "3,1,\n"), "day", weights="w")
    x, w = rng.normal(size=(3, 6, 2)), rng.uniform(1, 2, (3, 6))
    np.savez(tmp_path / "stack.npz", Xs=x, dts=np.arange(3.0), x=w)
    np.savez(tmp_path / "flat.npz", X=x.reshape(-1, 2), t=np.repeat(np.arange(3), 6), x=w.reshape(-1))
    a, b = (read_snapshots(tmp_path / name, weights="x") for name in ("stack.npz", "flat.npz"))
    assert np.array_equal(a.weights, b.weights)
    assert np.array_equal(a.x, b.x)
    with pytest.raises(SnapshotError, match="no array 'v'"):
        read_snapshots(tmp_path / "flat.npz", weights="v")
