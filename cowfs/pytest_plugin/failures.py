"""What the report of a failed test says about what the test has left. pytest knows of it from its first use on."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

_left: Final = pytest.StashKey[list["Left"]]()
_failed: Final = pytest.StashKey[bool]()


class Left(NamedTuple):
    """What a test leaves that it has used: what that is, the command that shows it if it is kept, and its home."""

    what: str
    command: str
    home: Path


def note_left(item: pytest.Item, left: Left) -> None:
    """Have the report say what a test has left, if the test fails."""
    manager = item.config.pluginmanager
    if not manager.hasplugin(__name__):
        manager.register(sys.modules[__name__], __name__)
    item.stash.setdefault(_left, []).append(left)


def has_failed(item: pytest.Item) -> bool:
    return item.stash.get(_failed, False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (left := item.stash.get(_left, None)):
        item.stash[_failed] = True
        report.sections.append(("cowfs", "\n".join(_lines(left, item.config))))
    return report


def _lines(left: Sequence[Left], config: pytest.Config) -> Iterator[str]:
    from cowfs.errors import command_line

    for one in left:
        if config.option.cow_keep:
            remove = command_line("rm", "-r", str(one.home))
            yield from (f"kept: {one.what}", f"  to look at it: {one.command}", f"  to remove it: {remove}")
        else:
            hint = "it went with the guest" if config.option.cow_keep is None else "--cow-keep keeps it"
            yield f"removed: {one.what}; {hint}"
    yield f"to repeat with the same seed: --cow-seed={config.option.cow_seed}"
