"""The last lines of a run say how many behaviours ran on each backend, whatever ran them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cowfs.pool import load_backend
from cowfs.testing.conformance import BEHAVIOURS
from tests.test_nothing_left import run_session

RUN = """
import pytest
@pytest.mark.parametrize("number", range(5))
def test_here(number, counted):
    counted("emulated", "emulated")
    if number == 3:
        pytest.skip("a judge is missing")
    assert number != 4
@pytest.mark.parametrize("number", range(2))
def test_there(number, counted):
    counted("dmthin in a guest", "dmthin")
def test_something_else():
    pass
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_behaviours_that_ran_are_counted(tmp_path: Path, workers: str) -> None:
    result = run_session(tmp_path, RUN, "-n", workers)
    ends = [line for line in result.stdout.splitlines() if line.startswith("conformance: ")]
    declared = {
        name: sum(bool(one.why_not(load_backend(name))) for one in BEHAVIOURS) for name in ("emulated", "dmthin")
    }
    total = len(BEHAVIOURS)
    wanted = (
        f"conformance: dmthin in a guest 2 behaviours ({declared['dmthin']} of {total} are not for it by declaration), "
        f"emulated 4 behaviours ({declared['emulated']} of {total} are not for it by declaration)"
    )
    assert ends == [wanted], result.stdout + result.stderr
    assert 0 < declared["emulated"] < total / 10
