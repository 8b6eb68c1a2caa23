import numpy as np
import pytest

from fpsde import read_snapshots
from fpsde.reading import read_start
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
    (GOOD.replace("a,b", "a,a"), "the header has 2 columns 'a'; rename them"),
    (GOOD.replace("\n0,", "\n\n0,", 1) + "\n\n3,x,1\n", "line 15 has 'x'"),
    (GOOD.replace("\n0,", "\n\n0,", 1) + "\n3,1\n", "line 14 has 2 fields"),
    (GOOD + "".join(f"3,{word},1\n" for word in ("NA", "NaN", "null", "None", " ", "n/a")),
     r"column 'a' has missing or infinite values in 6 rows \(lines 12, 13, 14, 15, 16, ...\)"),
])
def test_bad_csv_says_what_and_where(text, message, csv_file):
    with pytest.raises(SnapshotError, match=message):
        read_snapshots(csv_file(text), "day")


@pytest.mark.parametrize(("time", "features", "weights", "name"), [
    ("day", ("a", "a"), None, "a"), ("day", ("a", "day"), None, "day"), (None, ("day",), None, "day"),
    ("day", ("a",), "a", "a"), ("day", (), "day", "day")])
def test_columns_are_named_once(time, features, weights, name, csv_file):
    with pytest.raises(SnapshotError, match=f"column '{name}' is named 2 times among coordinates, time and weights"):
        read_snapshots(csv_file(GOOD), time, features, weights)


def test_missing_values_of_an_array_name_up_to_five_rows(tmp_path, rng):
    x = rng.normal(size=(20, 2))
    x[[3, 5, 6, 7, 11, 12, 13], 1] = np.nan
    np.savez(tmp_path / "x.npz", X=x, t=np.repeat([0, 1], 10))
    with pytest.raises(SnapshotError, match=r"x.npz: 7 points .* in rows 3, 5, 6, 7, 11, \.\.\., the first in coordinate 'x2'"):
        read_snapshots(tmp_path / "x.npz")


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


def _cut(content):
    """The last half of an archive lost, but its list of contents kept."""
    place = content.index(b"PK\x01\x02")
    return content[:60] + b"\0" * (place - 60) + content[place:]


@pytest.mark.parametrize("damage", [lambda b: b"PK\x03\x04 not really", lambda b: b"", lambda b: b[:-40], _cut])
def test_damaged_npz(damage, tmp_path, rng):
    np.savez_compressed(tmp_path / "x.npz", X=rng.normal(size=(50, 2)), t=np.repeat([0, 1], 25))
    (tmp_path / "x.npz").write_bytes(damage((tmp_path / "x.npz").read_bytes()))
    with pytest.raises(SnapshotError, match="x.npz: (not an npz file, or|array 'X' is) damaged"):
        read_snapshots(tmp_path / "x.npz")


def test_a_single_array_under_the_name_of_many(tmp_path, rng):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, rng.normal(size=(50, 2)))
    with pytest.raises(SnapshotError, match="not an npz file, or damaged; write one with numpy.savez"):
        read_snapshots(tmp_path / "x.npz")


def test_columns_without_a_name_are_row_numbers(csv_file):
    rows = GOOD.splitlines()
    numbered = "\n".join([f",{rows[0]}"] + [f"{i},{row}" for i, row in enumerate(rows[1:])])
    data, plain = read_snapshots(csv_file(numbered)), read_snapshots(csv_file(GOOD))
    assert data.names == plain.names
    assert np.array_equal(data.x, plain.x)
    assert read_snapshots(csv_file("t,\n" + "0,1\n0,2\n0,3\n1,4\n1,5\n1,6\n")).names == ("",)


@pytest.mark.parametrize("text", [
    "a,b\n1,2\n3,4\n", "day,a,b\n5,1,2\n5,3,4\n", "n,b,day,a\n9,2,5,1\n9,4,5,3\n9,0,6,0\n", ",a,b\n0,1,2\n1,3,4\n"])
def test_start_points_may_have_one_time_or_none(text, csv_file):
    assert read_start(csv_file(text), features=("a", "b")).tolist() == [[1, 2], [3, 4]]


def test_start_points_in_an_npz(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    for arrays, expected in (({"start": x}, x), ({"X": x, "t": np.ones(3)}, x), ({"X": x, "t": [2, 1, 1]}, x[1:])):
        np.savez(tmp_path / "start.npz", **arrays)
        assert np.array_equal(read_start(tmp_path / "start.npz"), expected)


@pytest.mark.parametrize(("text", "message"), [
    ("a,b,hour\n1,2,0\n3,4,1\n", "cannot tell which column to use, name it with --time; there are a, b, hour"),
    ("a,b\n1,2\n3,\n", "column 'b' has missing or infinite values in 1 rows .lines 3."),
    ("a,c\n1,2\n", "no column 'b'; the columns are a, c"),
])
def test_bad_start_points(text, message, csv_file):
    with pytest.raises(SnapshotError, match=message):
        read_start(csv_file(text), features=("a", "b"))


def test_bad_start_arrays(tmp_path):
    for x, message in ((np.zeros(3), "must have shape"), (np.zeros((0, 2)), "must have shape"),
                       (np.full((3, 2), np.nan), "in rows 0, 1, 2, the first in coordinate 'x1'")):
        np.savez(tmp_path / "start.npz", x)
        with pytest.raises(SnapshotError, match=message):
            read_start(tmp_path / "start.npz")


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
