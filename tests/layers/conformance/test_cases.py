"""Every case of the layer driver, in process and served through FUSE, and that the cases find mistakes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cowfs.errors import MissingRequirement
from cowfs.layers import Change, ChangeKind
from cowfs.steps import Steps, finish
from cowfs.testing.layers import CASES, HomeFactory, LayerCase, NotApplicableError, check
from cowfs.testing.layers.homes import InProcessHome, in_process, served
from tests.conftest import Account

BY_NUMBER = {case.number: case for case in CASES}


def try_out(case: LayerCase, factory: HomeFactory, directory: Path) -> None:
    try:
        check(case, factory, os.fspath(directory))
    except (NotApplicableError, MissingRequirement) as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("case", [case for case in CASES if not case.needs_paths], ids=lambda case: case.id)
def test_in_process(case: LayerCase, tmp_path: Path) -> None:
    try_out(case, in_process("emulated"), tmp_path)


@pytest.mark.fuse
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_served(case: LayerCase, tmp_path: Path, needs_fuse: None) -> None:
    try_out(case, served("emulated"), tmp_path)


# Those in which it matters who one is; all of them run so where the tests do.
OF_USERS = ["graph-1", "graph-2", "graph-5", "devicemapper-10", "snapshot-16", "rule-6", "rule-7", "rule-10"]


@pytest.mark.parametrize("way", ["in-process", pytest.param("served", marks=pytest.mark.fuse)])
def test_as_an_ordinary_user(ordinary_user: Account, way: str, request: pytest.FixtureRequest) -> None:
    if os.geteuid() != 0 and way == "in-process":
        pytest.skip("all cases run as an ordinary user already")
    numbers = OF_USERS
    if way == "served":
        request.getfixturevalue("needs_fuse")
        numbers = ["graph-7", "rule-4"]
    words = [word for number in numbers for word in ("--only", number)] + ["--served"] * (way == "served")
    done = ordinary_user.run(
        [sys.executable, "-m", "cowfs.testing.layers", "--backend", "emulated", *words, str(ordinary_user.directory)]
    )
    assert done.stdout.splitlines()[-1].endswith("passed"), done.stdout
    assert "failed" not in done.stdout


# ---------------------------------------------------------------------------- drivers with one mistake each


class Mistaken:
    """A driver with a method replaced."""

    def __init__(self, driver: Any, method: str, replacement: Callable[..., Any]) -> None:
        self._driver = driver
        self._method = method
        self._replacement = replacement

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._driver, name)
        if name != self._method:
            return original
        return lambda *arguments: self._replacement(original, *arguments)


def mistaken(method: str, replacement: Callable[..., Any]) -> HomeFactory:
    def make(directory: str, options: Sequence[str]) -> InProcessHome:
        home = InProcessHome(directory, "emulated", options)
        home.driver = Mistaken(home.driver, method, replacement)
        return home

    return make


def without_parent(create: Any, layer_id: str, parent: str | None, options: Mapping[str, str] | None = None) -> None:
    create(layer_id, None, options)


def without_options(create: Any, layer_id: str, parent: str | None, options: Mapping[str, str] | None = None) -> None:
    create(layer_id, parent, None)


def taken_anew(create: Any, layer_id: str, parent: str | None, options: Mapping[str, str] | None = None) -> None:
    driver = create.__self__
    if driver.exists(layer_id) and layer_id != parent:
        driver.remove(layer_id)
    create(layer_id, parent, options)


def changed(edit: Callable[[list[Change]], list[Change]]) -> Callable[..., Steps[list[Change]]]:
    def changes(original: Any, layer_id: str, parent: str | None) -> Steps[list[Change]]:
        yield
        return edit(finish(original(layer_id, parent)))

    return changes


def off_by_one(original: Any, *arguments: Any) -> Steps[int]:
    yield
    return int(finish(original(*arguments))) + 1


def without_whiteouts(original: Any, layer_id: str, parent: str | None) -> Iterator[bytes]:
    yield from original(layer_id, None)


def kept(remove: Any, layer_id: str) -> None:
    pass


def kept_with_the_base(original: Any) -> list[str]:
    return ["base", *original()]


def nothing_is_missing(original: Any, layer_id: str) -> bool:
    return True


def other_words(original: Any) -> list[tuple[str, str]]:
    return [(name.title(), value) for name, value in original()]


def same_id(original: Any, layer_id: str) -> dict[str, str]:
    return {**original(layer_id), "DeviceId": "1"}


def modified(changes: list[Change]) -> list[Change]:
    return [change._replace(kind=ChangeKind.MODIFY) for change in changes]


MISTAKES = [
    ("create", without_parent, ["graph-3", "graph-4", "store-1", "snapshot-1"]),
    ("create", without_options, ["graph-8", "devicemapper-7", "devicemapper-8", "rule-3"]),
    ("create", taken_anew, ["snapshot-11"]),
    ("remove", kept, ["graph-1", "store-3", "snapshot-5", "devicemapper-10"]),
    ("exists", nothing_is_missing, ["graph-1", "rule-1"]),
    ("list_layers", kept_with_the_base, ["store-3", "devicemapper-5"]),
    ("changes", changed(modified), ["graph-7", "store-2", "snapshot-2", "snapshot-17"]),
    ("changes", changed(lambda changes: changes[:-1]), ["graph-7", "store-2", "rule-8", "rule-15"]),
    ("changes", changed(lambda changes: changes[::-1]), ["graph-7", "store-1", "snapshot-6"]),
    ("diff", without_whiteouts, ["graph-5", "snapshot-14", "rule-15"]),
    ("diff_size", off_by_one, ["graph-5", "rule-6", "snapshot-9"]),
    ("apply", off_by_one, ["graph-5", "rule-6"]),
    ("status", other_words, ["rule-14"]),
    ("metadata", same_id, ["devicemapper-9"]),
]


@pytest.mark.parametrize(
    ("method", "replacement", "numbers"), MISTAKES, ids=lambda value: getattr(value, "__name__", None)
)
def test_mistakes_are_found(method: str, replacement: Callable[..., Any], numbers: list[str], tmp_path: Path) -> None:
    for number in numbers:
        directory = tmp_path / number
        directory.mkdir()
        with pytest.raises((AssertionError, OSError, KeyError)):
            check(BY_NUMBER[number], mistaken(method, replacement), os.fspath(directory))


class Untidy(InProcessHome):
    """Leaves a layer that cannot be used."""

    @contextmanager
    def files(self, layer_id: str) -> Iterator[Any]:
        with super().files(layer_id) as files:
            yield files
        thin = self._devices.active.activate(layer_id)
        thin.pwrite(1024 + 16, b"\x00" * 8)  # block counts of the superblock
        self._devices.active.deactivate(layer_id)


def test_a_damaged_layer_is_found(tmp_path: Path) -> None:
    with pytest.raises((AssertionError, OSError)):
        check(BY_NUMBER["snapshot-13"], lambda path, options: Untidy(path, "emulated", options), os.fspath(tmp_path))


def test_numbers_are_in_order() -> None:
    sections: dict[str, list[int]] = {}
    for case in CASES:
        section, _, number = case.number.rpartition("-")
        sections.setdefault(section, []).append(int(number))
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in sections.values())
    assert set(sections) == {"graph", "store", "devicemapper", "snapshot", "rule"}
