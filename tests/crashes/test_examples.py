"""The faults of the example programs are found and named, and their mended twins pass."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cowfs.crashes.explorer import Explorer
from cowfs.recording.recorder import Model
from tests.conftest import REPOSITORY
from tests.crashes.conftest import MountedHome

pytestmark = pytest.mark.fuse

EXAMPLES = REPOSITORY / "examples" / "crash_tests"
STATES = 40
FAULTS: list[tuple[str, Model, str]] = [
    ("rename_without_fsync", "posix", "rename of settings.tmp to settings persisted before its "),
    ("no_fsync_of_directory", "posix", "creation of message-1 was lost although 'message-1' was promised"),
    ("overwrite_in_place", "ext4", "data of record, bytes 0 to 8191 were torn"),
    ("append_without_checksum", "posix", "persisted before its data"),
    ("wrong_order_of_two_files", "ext4", "of the fsync of index persisted before data of values"),
    ("wrong_order_of_two_files", "posix", "data of index, bytes 0 to 7 persisted before size of values"),
]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in [name for name, module in sys.modules.items() if _is_example(module)]:
        del sys.modules[name]


def _is_example(module: ModuleType) -> bool:
    return Path(getattr(module, "__file__", None) or "/").parent == EXAMPLES


def explore(mounted: MountedHome, name: str, model: Model, *, mended: bool, states: int = STATES, seed: int = 1) -> int:
    program = importlib.import_module(name)
    count = 0
    with Explorer.started(mounted.home, mounted.path, model=model, seed=seed) as explorer:
        with explorer.record() as path:
            program.work(path, explorer.mark, mended=mended)
        for state in explorer.states(states):
            count += 1
            with state.opened() as path:
                program.check(path, state.marks)
    return count


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(("name", "model", "words"), FAULTS)
def test_the_fault_is_found_and_named(mounted: MountedHome, name: str, model: Model, words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        explore(mounted, name, model, mended=False)
    assert words in caught.value.__notes__[0]


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_the_name_is_of_what_came_too_early_whichever_state_failed_first(mounted: MountedHome, seed: int) -> None:
    with pytest.raises(AssertionError) as caught:
        explore(mounted, "wrong_order_of_two_files", "ext4", mended=False, seed=seed)
    assert "of the fsync of index persisted before data of values" in caught.value.__notes__[0]


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(("name", "model"), [(name, model) for name, model, _ in FAULTS])
def test_the_mended_twin_passes(mounted: MountedHome, name: str, model: Model) -> None:
    assert explore(mounted, name, model, mended=True) > 10


def test_the_list_of_examples_is_complete() -> None:
    assert {name for name, _, _ in FAULTS} == {path.stem for path in EXAMPLES.glob("*.py")} - {"program"}
