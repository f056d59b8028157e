"""The command line in process: `cowfs("create", "web")` on a small home, its output captured and judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from cowfs.cli.app import run
from tests.cli import mounted_home
from tests.cli.mounted_home import MountedHome

if TYPE_CHECKING:
    from tests.conftest import Account

SMALL = ("--data-size", "256M", "--metadata-size", "4M", "--base-size", "16M")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of an error."""
        (line,) = self.err.splitlines()
        prefix = "cowfs: "
        assert line.startswith(prefix), self.err
        assert line.isprintable()
        return line.removeprefix(prefix)


Run: TypeAlias = Callable[..., Outcome]


@pytest.fixture
def cowfs_anywhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line without global options."""
    monkeypatch.delenv("COWFS_HOME", raising=False)

    def call(*words: str | Path) -> Outcome:
        capsys.readouterr()
        status = run([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Outcome(status, out, err)

    return call


@pytest.fixture
def home(tmp_path: Path, cowfs_anywhere: Run) -> Path:
    """A home with the devices base, web and web-1, a snapshot of web."""
    path = tmp_path / "home"
    for words in (["init", *SMALL], ["create", "web"], ["snapshot", "web", "web-1"]):
        outcome = cowfs_anywhere("--home", path, *words)
        assert (outcome.status, outcome.err) == (0, "")
    return path


@pytest.fixture
def cowfs(home: Path, cowfs_anywhere: Run) -> Run:
    """Run a command on the home."""

    def call(*words: str | Path) -> Outcome:
        return cowfs_anywhere("--home", home, *words)

    return call


@pytest.fixture
def mounted(account: Account, needs_fuse: None) -> Iterator[MountedHome]:
    """A home with the device web, not mounted; judged at the end."""
    home = MountedHome(account)
    home.run("init", *mounted_home.SMALL)
    home.run("create", "web")
    try:
        yield home
    finally:
        home.clear()
    home.judge()
