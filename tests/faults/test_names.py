"""The paths of inodes, as names come and go."""

from __future__ import annotations

from cowfs.faults.names import Listed, Names

ROOT = 2


def names(*listed: Listed) -> tuple[Names, list[str]]:
    asked: list[str] = []

    def listing() -> list[Listed]:
        asked.append("listed")
        return list(listed)

    return Names(ROOT, listing), asked


def test_what_is_learnt_is_not_looked_for() -> None:
    known, asked = names()
    known.learn(ROOT, b"dir", 12)
    known.learn(12, b"file", 13)
    assert known.paths(ROOT) == ["/"]
    assert known.paths(12) == ["/dir"]
    assert known.paths(13) == ["/dir/file"]
    assert known.path_in(12, b"new") == ["/dir/new"]
    assert known.path_in(ROOT, b"new") == ["/new"]
    assert asked == []


def test_what_came_before_is_looked_for_once() -> None:
    known, asked = names((ROOT, b"dir", 12), (12, b"file", 13), (12, b"other", 14))
    assert known.paths(13) == ["/dir/file"]
    assert known.paths(14) == ["/dir/other"]
    assert asked == ["listed"]


def test_a_new_name_in_a_directory_that_came_before() -> None:
    known, asked = names((ROOT, b"dir", 12))
    known.learn(12, b"new", 13)
    assert known.paths(13) == ["/dir/new"]
    assert known.path_in(12, b"other") == ["/dir/other"]
    assert asked == ["listed"]


def test_what_is_nowhere_is_looked_for_once() -> None:
    known, asked = names()
    assert known.paths(99) == []
    assert known.paths(99) == []
    assert asked == ["listed"]
    known.learn(ROOT, b"there", 99)
    assert known.paths(99) == ["/there"]


def test_every_name_of_a_file_counts() -> None:
    known, _ = names()
    known.learn(ROOT, b"a", 12)
    known.learn(ROOT, b"b", 12)
    assert known.paths(12) == ["/a", "/b"]
    known.remove(ROOT, b"a")
    assert known.paths(12) == ["/b"]


def test_a_file_without_a_name_keeps_the_last_one() -> None:
    known, _ = names()
    known.learn(ROOT, b"a", 12)
    known.remove(ROOT, b"a")
    assert known.paths(12) == ["/a"]
    known.learn(ROOT, b"a", 13)
    assert known.paths(13) == ["/a"]


def test_a_renamed_directory_takes_its_files_along() -> None:
    known, _ = names()
    known.learn(ROOT, b"a", 12)
    known.learn(12, b"file", 13)
    known.rename((ROOT, b"a"), (ROOT, b"b"), is_exchange=False)
    assert known.paths(13) == ["/b/file"]


def test_a_rename_replaces() -> None:
    known, _ = names()
    known.learn(ROOT, b"a.tmp", 12)
    known.learn(ROOT, b"a", 13)
    known.rename((ROOT, b"a.tmp"), (ROOT, b"a"), is_exchange=False)
    assert known.paths(12) == ["/a"]
    known.learn(ROOT, b"a.tmp", 14)
    assert (known.paths(12), known.paths(14)) == (["/a"], ["/a.tmp"])


def test_an_exchange() -> None:
    known, _ = names()
    known.learn(ROOT, b"a", 12)
    known.learn(ROOT, b"b", 13)
    known.rename((ROOT, b"a"), (ROOT, b"b"), is_exchange=True)
    assert (known.paths(12), known.paths(13)) == (["/b"], ["/a"])


def test_names_that_nobody_asked_about() -> None:
    known, _ = names()
    known.remove(ROOT, b"x")
    known.rename((ROOT, b"x"), (ROOT, b"y"), is_exchange=False)
    assert known.paths(99) == []


def test_a_number_that_is_used_anew() -> None:
    """The directories of former names lead nowhere, and in no circle."""
    known, _ = names()
    known.learn(ROOT, b"a", 12)
    known.learn(12, b"b", 13)
    known.remove(12, b"b")
    known.remove(ROOT, b"a")
    assert (known.paths(12), known.paths(13)) == (["/a"], ["/a/b"])
    known.learn(ROOT, b"c", 13)
    known.learn(13, b"d", 12)
    assert (known.paths(12), known.paths(13)) == (["/c/d"], ["/c"])


def test_a_tree_that_others_change_too_ends() -> None:
    known, _ = names()
    known.learn(12, b"a", 13)
    known.learn(13, b"b", 12)
    assert known.paths(12) == []
    assert known.path_in(13, b"x") == []
