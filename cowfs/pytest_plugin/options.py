"""Options of pytest's command line, the mark `cow`, and what the report of a failed test says."""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Final

import pytest

NEEDS: Final = ("fuse", "dm")
MARK: Final = (
    "cow(data_size='1G', base_size='256M', no_space='queue'|'error', backend=NAME, raw=False): "
    "what the home, device or mount of a test is like"
)
LEFT: Final = pytest.StashKey[list[str]]()
"""Of a test: lines that say what it has left, filled by its fixtures."""


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lines = item.stash.get(LEFT, None)
    if lines and report.failed:
        report.sections.append(("cowfs", "\n".join([*lines, f"--cow-seed={item.config.option.cow_seed} repeats it"])))
    return report
