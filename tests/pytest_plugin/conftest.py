"""Suites as users write them, each run by a separate pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import Account

_COUNT: Final = re.compile(r"(\d+) (passed|failed|skipped|error|errors)\b")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a run of pytest: what it printed, and how many tests ended in which way."""

    output: str
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Suite:
    """A directory with the tests of a user, and their owner."""

    account: Account
    directory: Path

    def command(self, options: Sequence[str] = ()) -> list[str]:
        base = f"--basetemp={self.directory / 'base'}"
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", base, *options, "test_it.py"]

    def with_every_plugin(self) -> Suite:
        """Those of others too, as xdist's and trio's."""
        self.account.environment["PYTEST_ADDOPTS"] = ""
        return self

    def run(self, *options: str) -> Outcome:
        done = self.account.run(self.command(options), check=False, cwd=self.directory, stderr=subprocess.STDOUT)
        counts = {kind.rstrip("s") if kind == "errors" else kind: int(n) for n, kind in _COUNT.findall(done.stdout)}
        return Outcome(done.stdout, counts)

    def left(self) -> list[str]:
        """What sessions have left in their directories."""
        return [os.fspath(path) for path in self.directory.glob("base/**/cowfs*/*")]


@pytest.fixture
def suite(ordinary_user: Account) -> Callable[[str], Suite]:
    """Makes the suite of an ordinary user out of the text of its one file."""

    def make(text: str) -> Suite:
        directory = ordinary_user.mkdir("suite")
        (directory / "test_it.py").write_text(text)
        return Suite(ordinary_user, directory)

    return make
