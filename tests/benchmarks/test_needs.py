"""What is missing is said before a run begins."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cowfs.benchmarks.engines import served, tools
from cowfs.benchmarks.engines.catalogue import ENGINES, everything, usable
from cowfs.benchmarks.workloads import fio
from cowfs.cli.app import run

JOB = "[job]\nrw=read\nsize=4k\n"


def test_a_job_without_fio_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fio, "find_tool", lambda name: None)
    (tmp_path / "job.fio").write_text(JOB)
    assert run(["bench", str(tmp_path / "job.fio"), "--over", "plain"]) == 3
    assert capsys.readouterr().err == "cowfs: fio is not installed; try: sudo apt-get install fio\n"


def test_a_page_without_pygal_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pygal", None)
    assert run(["bench", "disk", "--over", "plain", "--html", str(tmp_path / "report.html")]) == 3
    assert "pip install 'cowfs-thin[bench]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_engines_whose_programs_are_missing_say_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_tool", lambda name: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(served, "_fuse", lambda: None)
    found, missing = usable(everything())
    assert {one.name for one in found} <= {"emulated", "dmthin", "dmthin-fuse", "plain", "bare-fuse"}
    remedies = {one.name: one.remedy for one in missing}
    assert remedies["qcow2"] == "sudo apt-get install qemu-system-common"
    assert remedies["fuse2fs"] == "sudo apt-get install fuse2fs"
    assert all(remedies.values())
    assert {*(one.name for one in found), *remedies} == set(ENGINES)
