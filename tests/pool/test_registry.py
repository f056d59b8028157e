"""Backends are found as importlib.metadata finds entry points, and one that cannot be used says why."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement, UsageError
from cowfs.pool import Backend, backend_names, load_backend
from cowfs.pool.registry import GROUP

TEXT = """\
[console_scripts]
tool = outside:main

[cowfs.backends]
# a comment
outside = outside_backend:BACKEND
broken=no_such_module_at_all:BACKEND
empty = outside_backend:NOTHING
other = outside_backend:OTHER [extra]

[unrelated]
wrong = wrong:WRONG
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that brings backends of its own."""
    (tmp_path / "outside-1.0.dist-info").mkdir()
    (tmp_path / "outside-1.0.dist-info" / "entry_points.txt").write_text(TEXT)
    (tmp_path / "bare-1.0.dist-info").mkdir()
    (tmp_path / "outside_backend.py").write_text("from cowfs_emulated import BACKEND\nOTHER = 7\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_the_same_as_importlib_finds(outside: None) -> None:
    assert backend_names() == sorted({entry.name for entry in entry_points(group=GROUP)})
    assert set(backend_names()) >= {"emulated", "outside", "broken", "empty", "other"}
    assert "wrong" not in backend_names()


def test_a_backend_from_outside_is_loaded(outside: None) -> None:
    assert isinstance(load_backend("outside"), Backend)
    assert load_backend("outside") is load_backend("emulated")


@pytest.mark.parametrize("name", ["broken", "empty"])
def test_one_that_cannot_be_loaded_says_why(outside: None, name: str) -> None:
    with pytest.raises(MissingRequirement, match=f"backend '{name}' cannot be loaded: .*(no_such_module|NOTHING)"):
        load_backend(name)


def test_one_that_is_no_backend_is_refused(outside: None) -> None:
    with pytest.raises(UsageError, match=r"backend 'other' \(outside_backend:OTHER\) does not implement"):
        load_backend("other")


def test_unknown_names_are_refused_with_the_known_ones(outside: None) -> None:
    with pytest.raises(UsageError, match=r"there is no backend 'nope'; registered: .*emulated.*outside"):
        load_backend("nope")
