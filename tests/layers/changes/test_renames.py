"""What was renamed is one change, wherever it went; `Lab.path_changes` compares both ways, and judges the result."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cowfs.layers.interface import PathChange
from tests.layers.changes.conftest import Lab, Layer


@pytest.fixture
def parent(make_base: Callable[..., Layer]) -> Layer:
    parent = make_base()
    for path in (b"/d", b"/d/e", b"/d/e/deep", b"/other"):
        parent.mkdir(path)
    for number in range(40):
        parent.write(b"/d/e/file-%d" % number, b"content %d" % number)
    parent.write(b"/f", b"content of f")
    parent.write(b"/d/e/deep/g", b"content of g")
    return parent


@pytest.fixture
def layer(parent: Layer) -> Layer:
    return parent.branch()


@pytest.fixture
def changes(lab: Lab, layer: Layer, parent: Layer) -> Callable[[], list[PathChange]]:
    return lambda: lab.path_changes(layer, parent)


Changes = Callable[[], list[PathChange]]


def test_a_file(layer: Layer, changes: Changes) -> None:
    layer.rename(b"/f", b"/other/new")
    assert changes() == [PathChange(b"/other/new", "R", b"/f")]


def test_a_file_that_was_written_too(layer: Layer, changes: Changes) -> None:
    layer.rename(b"/f", b"/new")
    layer.write(b"/new", b"X")
    assert changes() == [PathChange(b"/new", "R", b"/f", is_modified=True)]


def test_a_directory_is_one_change_however_much_is_in_it(layer: Layer, changes: Changes) -> None:
    layer.rename(b"/d", b"/moved")
    assert changes() == [PathChange(b"/moved", "R", b"/d")]


def test_what_changed_in_a_renamed_directory(layer: Layer, changes: Changes) -> None:
    layer.rename(b"/d", b"/moved")
    layer.write(b"/moved/e/file-7", b"X")
    layer.unlink(b"/moved/e/file-8")
    layer.write(b"/moved/e/new", b"new")
    layer.rename(b"/moved/e/deep", b"/moved/deeper")
    layer.write(b"/moved/deeper/g", b"X")
    assert changes() == [
        PathChange(b"/moved", "R", b"/d"),
        PathChange(b"/moved/deeper", "R", b"/d/e/deep"),
        PathChange(b"/moved/deeper/g", "M", b"/d/e/deep/g"),
        PathChange(b"/moved/e/file-7", "M", b"/d/e/file-7"),
        PathChange(b"/moved/e/file-8", "D", b"/d/e/file-8"),
        PathChange(b"/moved/e/new", "A"),
    ]


def test_out_of_a_directory_whose_name_is_that_of_a_file_now(layer: Layer, changes: Changes) -> None:
    layer.rename(b"/d/e/deep/g", b"/g")
    layer.remove(b"/d")
    layer.write(b"/d", b"new")
    assert changes() == [PathChange(b"/d", "M"), PathChange(b"/g", "R", b"/d/e/deep/g")]


def test_out_of_a_directory_that_was_deleted(layer: Layer, changes: Changes) -> None:
    layer.rename(b"/d/e/deep/g", b"/g")
    layer.remove(b"/d")
    assert changes() == [PathChange(b"/d", "D"), PathChange(b"/g", "R", b"/d/e/deep/g")]


def test_into_a_directory_that_is_new(layer: Layer, changes: Changes) -> None:
    layer.mkdir(b"/new")
    layer.rename(b"/d", b"/new/d")
    layer.rename(b"/f", b"/new/d/e/f")
    assert changes() == [
        PathChange(b"/new", "A"),
        PathChange(b"/new/d", "R", b"/d"),
        PathChange(b"/new/d/e/f", "R", b"/f"),
    ]


def test_another_name_is_added_and_a_lost_one_deleted(layer: Layer, changes: Changes) -> None:
    layer.link(b"/f", b"/again")
    assert changes() == [PathChange(b"/again", "A")]
    layer.unlink(b"/f")
    assert changes() == [PathChange(b"/again", "R", b"/f")]


def test_a_path_that_both_have_is_not_renamed(layer: Layer, changes: Changes) -> None:
    """As when an editor writes a new file and renames it over the old one."""
    layer.write(b"/f.new", b"new content")
    layer.rename(b"/f.new", b"/f")
    assert changes() == [PathChange(b"/f", "M")]


def test_an_inode_that_was_given_again_is_another_file(layer: Layer, changes: Changes) -> None:
    inode = layer.inode(b"/f")
    layer.unlink(b"/f")
    made = [layer.write(b"/new-%d" % number) for number in range(60)]
    assert inode in made
    assert {change.kind for change in changes()} == {"A", "D"}


def test_directories_above_a_change_are_none(layer: Layer, changes: Changes) -> None:
    layer.write(b"/d/e/deep/g", b"X")
    assert changes() == [PathChange(b"/d/e/deep/g", "M")]


def test_nothing(changes: Changes) -> None:
    assert changes() == []
