import numpy as np
import pytest

from fpsde import Snapshots, read_snapshots
from fpsde.snapshots import SnapshotError

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
