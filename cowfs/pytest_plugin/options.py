"""Options of pytest's command line, the marks, and which tests are for the kernel."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import pytest

NEEDS: Final = ("fuse", "dm")
_MARK: Final = (
    "cow(data_size='1G', base_size='256M', no_space='queue'|'error', backend=NAME, raw=False): "
    "what the home, device or mount of a test is like"
)
_MARK_OF_CRASHES: Final = (
    "cow_crashes(states=500, all=False, model='ext4'|'posix'): which states the fixture cow_crashes gives: at most so "
    "many, or all, and what a crash may lose"
)
_WITHOUT_HOME: Final = ("cow_seed", "cow_clock", "cow_prepare")


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
    for mark in (_MARK, _MARK_OF_CRASHES):
        config.addinivalue_line("markers", mark)
    if config.option.cow_seed is None:  # here, so that all workers of a run have the same
        config.option.cow_seed = random.randrange(1 << 32)  # noqa: S311


def wants_kernel(item: pytest.Item) -> bool:
    """Whether a test is to run on a pool of the kernel. One that moves the clock cannot, and is skipped."""
    names = getattr(item, "fixturenames", ())
    if "cow_clock" in names or not any(name.startswith("cow_") and name not in _WITHOUT_HOME for name in names):
        return False
    for mark in item.iter_markers("cow"):
        if "backend" in mark.kwargs:
            return bool(mark.kwargs["backend"] == "dmthin")
    return bool(item.config.option.cow_backend == "dmthin")


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """What is done at each test is done only where some are for the kernel's dm-thin."""
    if not config.pluginmanager.hasplugin("cowfs in a guest") and any(map(wants_kernel, items)):
        config.pluginmanager.register(_KernelTests())


class _KernelTests:
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Run a test that is for the kernel's dm-thin where there is that."""
        from cowfs.pytest_plugin.guests import run_in_guest

        return (wants_kernel(item) and run_in_guest(item, wants_kernel)) or None
