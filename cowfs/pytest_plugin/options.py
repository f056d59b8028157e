"""Options of pytest's command line, the mark `cow`, and what the report of a failed test says."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

NEEDS: Final = ("fuse", "dm")
MARK: Final = (
    "cow(data_size='1G', base_size='256M', no_space='queue'|'error', backend=NAME, raw=False): "
    "what the home, device or mount of a test is like"
)
_WITHOUT_HOME: Final = ("cow_seed", "cow_clock", "cow_prepare")
_left: Final = pytest.StashKey[list["Left"]]()
_failed: Final = pytest.StashKey[bool]()


class Left(NamedTuple):
    """What a test leaves that it has used: what that is, the command that shows it if it is kept, and its home."""

    what: str
    command: str
    home: Path


def note_left(item: pytest.Item, left: Left) -> None:
    """Have the report say what a test has left, if the test fails."""
    item.stash.setdefault(_left, []).append(left)


def has_failed(item: pytest.Item) -> bool:
    return item.stash.get(_failed, False)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cowfs", "copy-on-write devices (cowfs)")
    group.addoption(
        "--cow-backend",
        metavar="NAME",
        default="emulated",
        help="the backend of tests that name none: emulated (default), or dmthin, the kernel's",
    )
    group.addoption(
        "--cow-require",
        metavar="NEEDS",
        default="",
        type=_needs,
        help="fail tests that need what this machine lacks, instead of skipping them: fuse, dm, or fuse,dm",
    )
    group.addoption("--cow-seed", metavar="N", type=int, default=None, help="repeat the random choices of another run")
    group.addoption(
        "--cow-keep", action="store_true", help="keep the devices of failed tests, and say how to look at them"
    )


def _needs(text: str) -> frozenset[str]:
    needs = frozenset(filter(None, text.split(",")))
    if not needs <= set(NEEDS):
        raise pytest.UsageError(f"--cow-require={text}: what can be required is {' and '.join(NEEDS)}")
    return needs


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARK)
    if config.option.cow_seed is None:  # here, so that all workers of a run have the same
        config.option.cow_seed = random.randrange(1 << 32)  # noqa: S311


def wants_kernel(item: pytest.Item) -> bool:
    """Whether a test is to run on a pool of the kernel."""
    if not any(name.startswith("cow_") and name not in _WITHOUT_HOME for name in getattr(item, "fixturenames", ())):
        return False
    for mark in item.iter_markers("cow"):
        if "backend" in mark.kwargs:
            return bool(mark.kwargs["backend"] == "dmthin")
    return bool(item.config.option.cow_backend == "dmthin")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Run a test that is for the kernel's dm-thin where there is that."""
    if not wants_kernel(item) or item.config.pluginmanager.hasplugin("cowfs in a guest"):
        return None
    from cowfs.pytest_plugin.guests import run_in_guest

    return run_in_guest(item, wants_kernel) or None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (left := item.stash.get(_left, None)):
        item.stash[_failed] = True
        report.sections.append(("cowfs", "\n".join(_lines(left, item.config))))
    return report


def _lines(left: Sequence[Left], config: pytest.Config) -> Iterator[str]:
    for one in left:
        if config.option.cow_keep:
            yield from (f"kept: {one.what}", f"  to look at it: {one.command}", f"  to remove it: rm -r {one.home}")
        else:
            hint = "it went with the guest" if config.option.cow_keep is None else "--cow-keep keeps it"
            yield f"removed: {one.what}; {hint}"
    yield f"to repeat with the same seed: --cow-seed={config.option.cow_seed}"
