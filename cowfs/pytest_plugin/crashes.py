"""The fixture of crash states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from cowfs.crashes.explorer import CrashState, Explorer
    from cowfs.recording.recorder import Model

_STATES: Final = 500


class CowCrashes:
    """What the fixture `cow_crashes` gives: the device of `cow_mount`, recorded once, and its crash states.

    Args:
        states_max: how many states are tried at most; None for all.
        keep_failing: called with the smallest state that failed, before its exception is raised.
    """

    def __init__(
        self, explorer: Explorer, states_max: int | None, keep_failing: Callable[[CrashState], object]
    ) -> None:
        self._explorer = explorer
        self._states_max = states_max
        self._keep_failing = keep_failing

    def record(self) -> AbstractContextManager[Path]:
        """Record what happens in the block: the path of the device's files."""
        return self._explorer.record()

    def mark(self, text: str) -> None:
        """What was done so far is promised: every state from here on has this mark. It makes nothing durable."""
        self._explorer.mark(text)

    def states(self) -> Iterator[CrashState]:
        """The states, to be opened one after the other: `with state.opened() as path: check(path, state.marks)`.

        An exception in that block makes the state a failing one. Then states follow that lost less, and at the end the
        exception of the smallest one is raised, with a note of what was lost in it.
        """
        try:
            yield from self._explorer.states(self._states_max)
        except Exception:
            if self._explorer.failing is not None:
                self._keep_failing(self._explorer.failing)
            raise


@pytest.fixture
def cow_crashes(request: pytest.FixtureRequest, cow_seed: int) -> Iterator[CowCrashes]:
    """Crash states of the device of `cow_mount`, which a test may use too, to put files there before it records."""
    states_max, model = _wishes(request)
    from cowfs.crashes.explorer import Explorer

    mount = request.getfixturevalue("cow_mount")
    with Explorer(mount.home, mount.path.parent, mount.name, model=model, seed=cow_seed) as explorer:
        keeps = request.config.option.cow_keep
        yield CowCrashes(explorer, states_max, lambda failing: _keep(request, explorer, failing) if keeps else None)


def _keep(request: pytest.FixtureRequest, explorer: Explorer, failing: CrashState) -> None:
    """Make a state as a device, which stays with the home of the failed test."""
    from cowfs.errors import command_line
    from cowfs.pytest_plugin.failures import Left, note_left

    name, home = f"{explorer.device}.failing", explorer.home.path
    explorer.make(failing.state, name)
    look = command_line("cowfs", "--home", str(home), "mount", name, "DIRECTORY")
    note_left(request.node, Left(f"the crash state that failed, {name} in the home {home}", look, home))


def _wishes(request: pytest.FixtureRequest) -> tuple[int | None, Model]:
    """Of a test, by its mark: how many states, and the model. A mark that says what cannot be fails the test."""
    mark = request.node.get_closest_marker("cow_crashes")
    values = {"states": _STATES, "all": False, "model": "ext4"} | (mark.kwargs if mark is not None else {})
    if (mark is not None and mark.args) or values.keys() != {"states", "all", "model"}:
        pytest.fail("@pytest.mark.cow_crashes takes states, all and model, by name", pytrace=False)
    states, model = values["states"], values["model"]
    if not isinstance(states, int) or isinstance(states, bool) or states < 1:
        pytest.fail(f"@pytest.mark.cow_crashes(states={states!r}): it must be a number, 1 at least", pytrace=False)
    if model not in ("ext4", "posix"):
        pytest.fail(f"@pytest.mark.cow_crashes(model={model!r}): it must be 'ext4' or 'posix'", pytrace=False)
    return (None if values["all"] else states), model
