"""When a program of `bench/` judges its goals, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import __main__ as programs
from bench import repeat
from bench.rig import harness
from bench.rig.harness import Bench, figure_in
from cowfs.benchmarks import runner
from cowfs.benchmarks.machine import busy_processors
from cowfs.benchmarks.results import Question, Sample, encode_result
from cowfs.benchmarks.runner import Watcher, begin_result
from cowfs.cli.app import run


@pytest.mark.parametrize(("others", "met"), [(0.0, [True, False]), (1.5, [None, None])])
def test_goals_are_judged_only_on_a_machine_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, others: float, met: list[bool | None]
) -> None:
    monkeypatch.setattr(runner, "busy_processors", lambda _: others)
    result = begin_result(tmp_path, rounds=1, seed=1)
    question = Question("test", "", "", {}, [])
    bench = Bench(tmp_path, question, result, Watcher(), quick=False)
    found = bench.compare("line", {"two": lambda: 2.0, "one": lambda: 1.0}, unit="1/s")
    bench.goal_ratio("two", found["two"], found["one"], at_least=2)
    bench.goal_ratio("three", found["two"], found["one"], at_least=3)
    assert [goal.is_met for goal in question.goals] == met
    assert all(sample.cpu_seconds is not None for sample in question.lines[0].samples["two"])
    assert question.lines[0].values() == {"two": [2.0] * harness.ROUNDS, "one": [1.0] * harness.ROUNDS}


def test_busy_processors_are_counted() -> None:
    assert busy_processors(0.01) >= 0


def test_a_program_leaves_a_result_that_cowfs_bench_compares_and_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "busy_processors", lambda _: 1.5)
    paths = [str(tmp_path / name) for name in ("new.json", "new.html")]
    monkeypatch.setattr("sys.argv", ["bench", "--quick", "--directory", str(tmp_path), *paths_of(paths), "snapshot"])
    assert programs.main() == 0
    assert "goal: snapshot time, 16 M / 16 k = " in capsys.readouterr().out
    (question,) = json.loads(Path(paths[0]).read_text())["questions"]
    assert question["title"] == "Does a snapshot take longer when the device is larger?"
    assert question["expectation"].startswith("no. A snapshot copies")
    assert question["goals"][0]["at_most"] == 1.5
    assert "wanted" in Path(paths[1]).read_text()
    assert run(["bench", "compare", paths[0], paths[0], "--judge-loaded"]) == 0
    assert capsys.readouterr().out.count(" tie") == 2
    assert run(["bench", "report", paths[0]]) == 0
    assert "wanted <= 1.5: not judged" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.html", "new.json"]


def paths_of(paths: list[str]) -> list[str]:
    json_file, html_file = paths
    return ["--json", json_file, "--html", html_file]


def test_runs_repeat_where_their_medians_are_within_the_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for number, values in enumerate([(10.0, 11.0, 12.0), (12.0, 13.0, 14.0), (13.0, 14.4, 15.0)]):
        result = begin_result(tmp_path, rounds=3, seed=1)
        result.questions = [Question("disk", "", "", {}, [])]
        for value in values:
            result.questions[0].add("emulated", "read", figure_in("1/s"), Sample(value))
            result.questions[0].add("plain", "read", figure_in("1/s"), Sample(2 * value))
        paths.append(str(tmp_path / f"{number}.json"))
        Path(paths[-1]).write_bytes(encode_result(result))
    assert repeat.main(paths) == 0  # 3.4 apart at most: the reach of three rounds is 1.72 of their range of 2
    assert "0 of 2 medians lie outside" in capsys.readouterr().out
    samples = result.questions[0].lines[0].samples
    samples["emulated"] = [Sample(value) for value in (14.6, 14.6, 14.7)]
    samples["plain"] = [Sample(30.0)] * 3
    Path(paths[2]).write_bytes(encode_result(result))
    assert repeat.main(paths[1:]) == 1
    said = capsys.readouterr().out
    assert "disk / read / emulated / plain: 0.5 +-0%, 0.487 +-1%" in said
    assert "0 of 2 medians lie outside" in said
    assert "1 of 1 ratios of contenders lie outside" in said
    assert repeat.main(paths) == 1
    assert "disk / read / emulated [1/s]: 11 +-31%, 13 +-26%, 14.6 +-1%" in capsys.readouterr().out
