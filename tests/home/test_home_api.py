"""The Python API: its example runs, and importing a part of the package loads no more than that part."""

from __future__ import annotations

import doctest
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

import cowfs
from cowfs import errors
from cowfs.errors import PoolError
from cowfs.home.api import home as home_module
from tests.home.conftest import SMALL, serving


def test_the_example_runs() -> None:
    result = doctest.testmod(home_module, optionflags=doctest.ELLIPSIS)
    assert result.attempted >= 5
    assert result.failed == 0


def test_create_makes_a_home_once(tmp_path: Path) -> None:
    path = tmp_path / "home"
    with pytest.raises(errors.NotAHome):
        cowfs.open_home(path)
    steps: list[tuple[str, int, int]] = []
    with cowfs.open_home(path, create=True, options=SMALL, progress=lambda *step: steps.append(step)) as home:
        home.create("web")
    assert steps[0][1:] == (0, 3)
    assert steps[-1][1:] == (3, 3)
    with cowfs.open_home(path, create=True, options=SMALL) as home:
        assert [row.name for row in home.devices()] == ["base", "web"]
        assert home.path == path
    home.close()


def test_create_leaves_other_directories_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    with pytest.raises(errors.HomeError, match="not an empty directory"):
        cowfs.open_home(tmp_path, create=True)


def test_an_unknown_backend(home: Path) -> None:
    with pytest.raises(errors.UsageError, match="there is no backend 'abacus'"):
        cowfs.open_home(home, backend="abacus")


def test_read_only_changes_nothing(home: Path) -> None:
    with cowfs.open_home(home, read_only=True) as opened:
        assert [row.name for row in opened.devices()] == ["base", "web"]
        with opened.device("web", read_only=True) as disk:
            assert len(disk.pread(0, 4096)) == 4096
        with pytest.raises(errors.HomeError, match="read-only"):
            opened.create("x")


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, cowfs, cowfs.errors, cowfs.units; "
        "assert not {'msgspec', 'cowfs.devices', 'cowfs.home', 'cowfs.pool'} & set(sys.modules); "
        "assert cowfs.open_home and cowfs.Home and cowfs.HomeOptions and cowfs.__version__; "
        "assert 'trio' not in sys.modules and 'click' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_package_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cowfs.nothing  # noqa: B018
    assert set(cowfs.__all__) == {"Home", "HomeOptions", "__version__", "open_home"}


def test_the_base_device_is_written_only_when_asked_for_in_so_many_words(home: Path) -> None:
    with cowfs.open_home(home) as opened:
        with opened.device("base") as disk:
            before = disk.pread(1 << 20, 4096)
            with pytest.raises(PoolError, match="read-only"):
                disk.pwrite(1 << 20, b"by mistake")
        with opened.device("base", write_base=True) as disk:
            disk.pwrite(1 << 20, before)
        with (
            pytest.raises(PoolError, match="read-only"),
            opened.device("base", read_only=True, write_base=True) as disk,
        ):
            disk.pwrite(1 << 20, b"x")


@pytest.mark.parametrize("through_the_holder", [False, True])
def test_threads_share_a_home(home: Path, through_the_holder: bool) -> None:
    with serving(home) if through_the_holder else nullcontext(), cowfs.open_home(home, durable=False) as opened:

        def make(number: int) -> int:
            for step in range(5):
                opened.snapshot("web", f"web-{number}-{step}")
                opened.devices()
            return len(opened.usage().thins)

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(make, range(4)))
        assert len(opened.devices()) == 22
        assert opened.check().clean


def test_an_open_disk_is_for_one_thread(home: Path) -> None:
    with cowfs.open_home(home, durable=False) as opened, ThreadPoolExecutor(1, "other") as threads:
        with opened.device("web"), opened.device("base"):
            opened.status()
            for act in (opened.status, opened.devices, opened.check):
                with pytest.raises(
                    errors.HomeBusy, match=r"used in thread 'other_0', and a disk of it .* 'MainThread'"
                ):
                    threads.submit(act).result()
        assert threads.submit(opened.status).result().devices == 1
