"""Disks that are full: an engine that fails in the middle of a question leaves the others; a report that fails, too."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowfs.benchmarks.engines.catalogue import Wanted
from cowfs.benchmarks.engines.interface import WORKS, Contender, Engine, Offer, Setting
from cowfs.benchmarks.runner import Run
from cowfs.benchmarks.workloads.catalogue import Scale, built_in, choose
from cowfs.cli.app import run


class Full(Contender):
    """Devices are files or directories; the third snapshot finds no space. What it does not have, it cannot remove."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.name, setting.directory)
        self.snapshots = 0

    def create(self, name: str, size_bytes: int) -> None:
        (self.directory / name).mkdir()
        with (self.directory / name / "disk").open("xb") as file:
            file.truncate(size_bytes)

    def snapshot(self, origin: str, name: str) -> None:
        self.snapshots += 1
        if self.snapshots == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.create(name, (self.directory / origin / "disk").stat().st_size)

    def remove(self, name: str) -> None:
        directory = self.directory / name
        if not directory.is_dir():
            raise KeyError(name)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()

    @contextmanager
    def disk(self, name: str) -> Iterator[Path]:
        yield self.directory / name / "disk"

    @contextmanager
    def tree(self, name: str) -> Iterator[Path]:
        yield self.directory


@pytest.mark.parametrize(("question", "rounds"), [("first-write", 1), ("small-files", 3)])
def test_an_engine_without_space_in_a_question_is_out_of_it(tmp_path: Path, question: str, rounds: int) -> None:
    @contextmanager
    def set_up(setting: Setting) -> Iterator[Contender]:
        yield Full(setting)

    wanted = [
        Wanted("full", Engine("full", "", Offer.DISK | Offer.TREE | Offer.SNAPSHOTS, lambda: WORKS, set_up), None)
    ]
    workloads = choose([question], built_in(seed=1, scale=Scale.QUICK))
    result = Run(wanted, workloads, tmp_path, rounds, seed=1, look_seconds=0.001, prepares_once=True)()
    assert [(one.name, one.problem) for one in result.questions[0].failed] == [("full", "No space left on device")]


def test_what_can_be_written_of_a_result_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quiet", "bench", "disk", "--quick", "--over", "plain", "--rounds", "1", "--directory", str(tmp_path)]
    files = {kind: str(tmp_path / f"result.{kind}") for kind in ("json", "csv", "html")}
    for kind, path in files.items():
        words += [f"--{kind}", path]
    with pytest.MonkeyPatch.context() as patch:
        rename = os.rename

        def refuse(source: str, target: str) -> None:
            if target == files["json"]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rename(source, target)

        patch.setattr(os, "rename", refuse)
        assert run(words) == 1
    said = capsys.readouterr()
    assert said.err == f"cowfs: {files['json']} cannot be written: No space left on device\n"
    assert "random read of 4 KiB" in said.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.csv", "result.html"]
