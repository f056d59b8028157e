"""Which directory is taken for what a server of a home that cannot be written needs to write."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from cowfs.errors import HomeError, MissingRequirement
from cowfs.home.opened.runtime import find_runtime_directory, make_runtime_directory


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "a" / "höme"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    path = tmp_path / "parent"
    path.mkdir(mode=0o700)
    return path


def test_it_is_named_after_the_home_and_found_again(home: Path, parent: Path, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    parents = (absent, str(parent), str(tmp_path / "last"))
    assert find_runtime_directory(home, parents) is None
    made = make_runtime_directory(home, parents)
    assert made.parent == parent / "cowfs"
    assert re.fullmatch(r"h_me-[0-9a-f]+-[0-9a-f]+", made.name)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)] == [0o700, 0o700]
    assert find_runtime_directory(home, parents) == make_runtime_directory(home, parents) == made

    (tmp_path / "link").symlink_to(home)
    assert find_runtime_directory(tmp_path / "link", parents) == made
    other = tmp_path / "b" / "höme"
    other.mkdir(parents=True)
    assert find_runtime_directory(other, parents) is None
    assert make_runtime_directory(other, parents) != made
    assert not Path(absent).exists()


def test_the_last_place_is_made(home: Path, tmp_path: Path) -> None:
    made = make_runtime_directory(home, (str(tmp_path / "absent"), str(tmp_path / "last")))
    assert made.parent.parent == tmp_path / "last"
    assert stat.S_IMODE((tmp_path / "last").stat().st_mode) == 0o700


def test_a_place_that_others_may_write_into_is_passed_over(home: Path, parent: Path, tmp_path: Path) -> None:
    parent.chmod(0o770)
    last = tmp_path / "last"
    assert make_runtime_directory(home, (str(parent), str(last))).parent.parent == last
    last.chmod(0o777)
    assert find_runtime_directory(home, (str(parent), str(last))) is None
    with pytest.raises(MissingRequirement, match="set XDG_RUNTIME_DIR") as refusal:
        make_runtime_directory(home, (str(parent), str(last)))
    assert f"none of {parent}, {last} is a directory of uid {os.geteuid()}" in str(refusal.value)


def test_what_stands_in_the_way_is_not_used(home: Path, parent: Path, tmp_path: Path) -> None:
    parents = (str(parent),)
    own = parent / "cowfs"
    own.symlink_to(tmp_path)
    with pytest.raises(HomeError, match="closed to all others"):
        make_runtime_directory(home, parents)
    own.unlink()
    made = make_runtime_directory(home, parents)
    own.chmod(0o755)
    assert find_runtime_directory(home, parents) is None
    with pytest.raises(HomeError, match="closed to all others"):
        make_runtime_directory(home, parents)
    own.chmod(0o700)
    made.rmdir()
    made.write_text("")
    with pytest.raises(HomeError, match="closed to all others"):
        make_runtime_directory(home, parents)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a directory of another user")
def test_a_place_of_another_user_is_passed_over(home: Path, parent: Path, tmp_path: Path) -> None:
    """As after su, which keeps the variable."""
    os.chown(parent, 65534, -1)
    assert make_runtime_directory(home, (str(parent), str(tmp_path / "last"))).parent.parent == tmp_path / "last"
