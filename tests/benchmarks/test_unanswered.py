"""What was asked for by name and has no answer ends a run with one error, and what was not named does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cowfs.benchmarks.engines import catalogue
from cowfs.benchmarks.engines.interface import Engine, Offer
from cowfs.benchmarks.engines.plain import PLAIN
from cowfs.cli.app import run
from cowfs.pool.interface import ProbeResult

ABSENT = Engine(
    "lvm-thin",
    "an engine that is not here",
    Offer.DISK,
    lambda: ProbeResult(usable=False, problem="lvm is not installed", remedy="sudo apt-get install lvm2"),
    PLAIN.set_up,
)


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that works, and one that does not."""
    monkeypatch.setattr(catalogue, "ENGINES", {engine.name: engine for engine in (PLAIN, ABSENT)})


def bench(directory: Path, *words: str) -> int:
    return run(["--quiet", "bench", "--quick", "--rounds", "1", "--directory", str(directory), *words])


def test_an_engine_that_was_named_and_cannot_run_is_an_error_after_the_others_ran(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "result.json"
    assert bench(tmp_path, "disk", "--over", "plain,lvm-thin", "--json", str(kept)) == 3
    said = capsys.readouterr()
    assert said.err == (
        "cowfs: the engine 'lvm-thin' cannot run here: lvm is not installed (try: sudo apt-get install lvm2); "
        "--skip-missing does without engines that cannot run here\n"
    )
    assert "random read of 4 KiB, depth 1 [1/s]" in said.out
    (question,) = json.loads(kept.read_text())["questions"]
    assert {name for line in question["lines"] for name in line["samples"]} == {"plain"}


@pytest.mark.parametrize("words", [("--over", "plain,lvm-thin", "--skip-missing"), ()])
def test_an_engine_that_was_not_named_or_may_be_missing_is_none(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert bench(tmp_path, "disk", *words) == 0


def test_an_engine_that_was_named_and_is_asked_nothing_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path, "layers", "disk", "--over", "plain") == 1
    assert capsys.readouterr().err == "cowfs: no engine answered 'layers'\n"
    assert bench(tmp_path, "layers", "churn", "--over", "plain") == 1
    assert capsys.readouterr().err == (
        "cowfs: the engine 'plain' was asked nothing: it has no home, which 'layers' needs, and it has no snapshots, "
        "which 'churn' needs; no engine answered 'layers'; no engine answered 'churn'\n"
    )
    assert bench(tmp_path, "churn", "--over", "plain", "--skip-missing") == 1  # nothing was measured


def test_with_json_the_result_is_printed_and_the_error_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--json", "bench", "disk", "--quick", "--rounds", "1", "--directory", str(tmp_path)]
    assert run([*words, "--over", "plain,lvm-thin"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out)["missing"][0]["name"] == "lvm-thin"
    assert "cannot run here" in json.loads(said.err.splitlines()[-1])["error"]["message"]


def test_where_no_engine_can_run_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, "disk", "--over", "lvm-thin", "--skip-missing") == 3
    assert capsys.readouterr().err == (
        "cowfs: the engine 'lvm-thin' cannot run here: lvm is not installed (try: sudo apt-get install lvm2)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_failed_is_an_error_with_or_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, "--command", "false {dir}") == 1
    error = capsys.readouterr().err
    assert "cowfs: the engine 'plain' failed in 'command': 'false " in error
