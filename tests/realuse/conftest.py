"""A home for real programs, as root and as an ordinary user, judged after each test by tools that are not ours."""

from __future__ import annotations

import contextlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Account


class UsedHome:
    """One home of one account with one volume, `disk`, driven by the command line alone."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.home = account.directory / "home"
        self.target = account.mkdir("mnt")
        self.raw_target = account.mkdir("raw")
        self.cowfs("init", "--data-size", "8G", "--metadata-size", "64M", "--base-size", "2G")
        self.cowfs("create", "disk")

    def cowfs(self, *words: str) -> str:
        return str(self.account.run(["cowfs", "--home", self.home, *words]).stdout)

    def status(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.cowfs("--json", "status"))
        return result

    @contextlib.contextmanager
    def mounted(self, name: str = "disk", *options: str) -> Iterator[Path]:
        self.cowfs("mount", name, str(self.target), *options)
        try:
            yield self.target
        finally:
            self.cowfs("umount", str(self.target))

    def judge(self, name: str = "disk") -> None:
        """Ask e2fsck about the volume, and thin_check and cowfs' own recount about the pool."""
        self.cowfs("mount", name, str(self.raw_target), "--raw", "--read-only")
        try:
            self.account.run(["e2fsck", "-fn", self.raw_target / name])
        finally:
            self.cowfs("umount", str(self.raw_target))
        self.cowfs("check")
        self.account.run(["thin_check", self.home / "devicemapper" / "metadata"])


@pytest.fixture
def used_home(account: Account, needs_fuse: None) -> Iterator[UsedHome]:
    home = UsedHome(account)
    yield home
    home.judge()


@pytest.fixture
def library_archive(account: Account) -> Path:
    """Python's standard library as a tar archive, with times to the nanosecond."""
    path = Path(account.directory / "library.tar")
    source = sysconfig.get_path("stdlib")
    excluded = [f"--exclude=./{name}" for name in ("test", "site-packages", "dist-packages")]
    account.run(["tar", "--format=posix", *excluded, "-C", source, "-cf", path, "."])
    return path


@pytest.fixture
def library(account: Account, library_archive: Path) -> Path:
    """The same, unpacked on an ordinary file system."""
    path: Path = account.mkdir("library")
    account.run(["tar", "-xpf", library_archive, "-C", path])
    return path
