"""What a test wants of its home, device or mount: the mark `cow`, and options of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import pytest

from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import UsageError
from cowfs.pool import BackendWithClock, load_backend
from cowfs.units import parse_size

_USUAL_BACKEND: Final = "emulated"
_METADATA_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a test wants. Tests that want the same of `home_options` and `backend` share a mounted home.

    Attributes:
        data_size_bytes: of the pool's data, in a sparse file.
        base_size_bytes: of the disk, as an empty ext4.
        no_space: whether writes to a full pool wait for a minute, or fail at once.
        backend: the backend that implements the pool, a name of the entry-point group `cowfs.backends`.
        raw: the mount shows the disk as one file in place of the files on it.
        virtual_clock: the home's clock runs only when it is moved; set by the fixture `cow_clock`, not by a mark.
    """

    data_size_bytes: int = 1 << 30
    base_size_bytes: int = 256 << 20
    no_space: Literal["queue", "error"] = "queue"
    backend: str = _USUAL_BACKEND
    raw: bool = False
    virtual_clock: bool = False

    def home_options(self) -> HomeOptions:
        return HomeOptions(
            data_size_bytes=self.data_size_bytes,
            metadata_size_bytes=_METADATA_BYTES,
            base_size_bytes=self.base_size_bytes,
            error_if_no_space=self.no_space == "error",
            min_free_percent=0,
            durable=False,
        )


_SIZES: Final = {"data_size": "data_size_bytes", "base_size": "base_size_bytes"}
_VALUES: Final = [*_SIZES, "no_space", "backend", "raw"]


def wishes_of(request: pytest.FixtureRequest) -> Wishes:
    """Of a test, by its marks, the nearest of which count most.

    A mark that says what cannot be fails the test; one with `cow_clock` is skipped where the backend has no such clock.
    """
    wanted: dict[str, object] = {"backend": request.config.option.cow_backend}
    try:
        for mark in reversed(list(request.node.iter_markers("cow"))):
            if mark.args:
                raise UsageError(f"@pytest.mark.cow takes its values by name, and {mark.args[0]!r} has none")
            wanted |= mark.kwargs
        wishes = _checked(wanted, virtual_clock="cow_clock" in request.fixturenames)
        is_possible = not wishes.virtual_clock or isinstance(load_backend(wishes.backend), BackendWithClock)
    except UsageError as error:
        problem = error.message
    else:
        if is_possible:
            return wishes
        pytest.skip(f"cow_clock: the clock of the backend '{wishes.backend}' is the kernel's, which cannot be moved")
    pytest.fail(problem, pytrace=False)


def _checked(wanted: Mapping[str, object], *, virtual_clock: bool) -> Wishes:
    """Raises UsageError."""
    values: dict[str, object] = {}
    for name, given in wanted.items():
        kind = {"raw": bool, "no_space": str, "backend": str}.get(name, int)
        if name not in _VALUES:
            raise UsageError(f"@pytest.mark.cow has no value {name!r}; it has {', '.join(_VALUES)}")
        value = _size(name, given) if name in _SIZES and isinstance(given, str) else given
        if not isinstance(value, kind) or (name == "no_space" and value not in ("queue", "error")):
            expected = {bool: "True or False", int: "a size, such as '64M'"}.get(kind, "'queue' or 'error'")
            raise UsageError(f"@pytest.mark.cow({name}={value!r}): it must be {expected}")
        values[_SIZES.get(name, name)] = value
    wishes = Wishes(**values, virtual_clock=virtual_clock)  # type: ignore[arg-type]  # checked above
    wishes.home_options().check()
    if wishes.backend != _USUAL_BACKEND:
        load_backend(wishes.backend)
    return wishes


def _size(name: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"@pytest.mark.cow({name}={text!r}): {error}") from None
