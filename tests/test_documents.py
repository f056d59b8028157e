"""What users are shown runs: the demo, the tour of the README, and the examples of the Python API."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import cowfs
from cowfs.home.api.layers import Layers

if TYPE_CHECKING:
    from tests.conftest import Account

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.fuse
@pytest.mark.slow
def test_demo(account: Account, needs_fuse: None) -> None:
    said = account.run([REPOSITORY / "scripts/demo"]).stdout
    assert said.endswith("All of it works here.\n")
    assert not list(account.directory.glob("cowfs-demo.*"))


@pytest.mark.fuse
@pytest.mark.slow
def test_tour(account: Account, needs_fuse: None) -> None:
    """All shell blocks in one shell, in which every command must succeed; then nothing is mounted any more."""
    script = "".join(blocks("sh"))
    assert script.count("cowfs") > 10
    said = account.run_script(script)
    for line in "".join(blocks("text")).splitlines():
        assert line.strip() in said, f"the README promises this line, and the tour did not print it: {line}"


def test_python_example(account: Account) -> None:
    (example,) = blocks("python")
    expected = [line.partition("# ")[2] for line in example.splitlines() if "print(" in line]
    assert expected
    assert account.run([sys.executable, "-c", example]).stdout.splitlines() == expected


def test_docstring_example() -> None:
    runner = doctest.DocTestRunner()
    for documented in (cowfs.Home, Layers):
        for test in doctest.DocTestFinder(recurse=False).find(documented, documented.__name__):
            runner.run(test)
    assert runner.tries > 3
    assert runner.failures == 0
