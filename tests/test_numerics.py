"""Training in float32 against the same in float64, on data that are hard on floating point: rows of benchmarks/numerics.py."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = str(Path(__file__).parent.parent / "benchmarks")

pytestmark = pytest.mark.filterwarnings("ignore:the number of points")


@pytest.fixture(scope="module")
def numerics():
    """The benchmark, from the folder where it finds its own."""
    sys.path.insert(0, BENCHMARKS)
    import numerics

    yield numerics
    sys.path.remove(BENCHMARKS)


def differ(numerics, row, drift, steps, points):
    found = [numerics.log_likelihood(row, drift, dtype, steps, points)[0] for dtype in ("float32", "float64")]
    assert np.isfinite(found).all()
    return numerics.apart(*found, row.snapshots(0, 4)[0].shape[1])


def test_float32_is_as_good_as_float64(numerics):
    """One of them as a token; the others take minutes."""
    row, = (row for row in numerics.ROWS if row.name == "offset of 1e8 standard deviations")
    assert differ(numerics, row, "time", 6, 40) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("drift", ["time", "autonomous"])
@pytest.mark.parametrize("place", range(18))
def test_float32_is_as_good_as_float64_on_all_that_is_hard(place, drift, numerics):
    assert len(numerics.ROWS) == 18
    assert differ(numerics, numerics.ROWS[place], drift, 200, 400) < 0.05
