"""When a benchmark judges its goals."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.rig import harness
from bench.rig.harness import Bench
from cowfs.benchmarks.machine import busy_processors


@pytest.mark.parametrize(("others", "met"), [(0.0, [True, False]), (1.5, [None, None])])
def test_goals_are_judged_only_on_a_machine_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], others: float, met: list[bool | None]
) -> None:
    monkeypatch.setattr(harness, "busy_processors", lambda _: others)
    bench = Bench("test", Path(), quick=False)
    found = bench.compare("question", {"two": lambda: 2.0, "one": lambda: 1.0}, unit="1/s")
    bench.goal_ratio("two", found["two"], found["one"], at_least=2)
    bench.goal_ratio("three", found["two"], found["one"], at_least=3)
    assert [goal.met for goal in bench.goals] == met
    assert ("not judged: others use 1.5 processors" in capsys.readouterr().out) is (others > 0)


def test_busy_processors_are_counted() -> None:
    assert busy_processors(0.01) >= 0
