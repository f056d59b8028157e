"""cowfs for pytest: homes, disks and mounted file systems as fixtures. pytest loads it by its entry point `cowfs`.

options            the options of the command line, the marks, which tests are for the kernel
fixtures           cow_home, cow_device, cow_mount, cow_clock, cow_seed
faults             cow_faults
crashes            cow_crashes
mounted            what cow_mount gives
clock              what cow_clock gives
wishes             what a test wants of its home: the mark `cow`
golden             empty homes that all others are clones of
session            what the tests of a session share: golden homes, mounts and the processes that serve them
left_behind        removes what a session that was killed has left
plain_imports      how the plugin's and cowfs' modules are loaded
guests, in_guest   tests on the kernel's dm-thin, in User-Mode Linux where this machine has none
failures           what the report of a failed test says about what the test has left
needs              a test that this machine cannot run is skipped, or fails with --cow-require

The plugin sleeps until one of its fixtures is used: the modules with hooks and fixtures import nothing of cowfs at
their top. They are one plugin for pytest, this package, as each one more costs every run a millisecond. Fixtures of
another part are a module here that does the same, with their names imported below:

    @pytest.fixture
    def cow_faults(request: pytest.FixtureRequest) -> Iterator[Faults]:
        from cowfs.faults.api import Faults
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

from cowfs.pytest_plugin.plain_imports import install

if TYPE_CHECKING:
    from cowfs.faults.api import Faults
    from cowfs.pytest_plugin.clock import Clock
    from cowfs.pytest_plugin.crashes import CowCrashes
    from cowfs.pytest_plugin.mounted import MountedDevice, Snapshot

__all__ = ["Clock", "CowCrashes", "Faults", "MountedDevice", "Snapshot"]

install()

if pytest.version_tuple >= (8,):  # an older one, which the extra does not allow, is none the worse for cowfs
    from cowfs.pytest_plugin.crashes import cow_crashes  # noqa: F401  # for pytest, as all below
    from cowfs.pytest_plugin.faults import cow_faults  # noqa: F401
    from cowfs.pytest_plugin.fixtures import (  # noqa: F401
        cow_clock,
        cow_device,
        cow_home,
        cow_mount,
        cow_prepare,
        cow_seed,
        cow_session,
    )
    from cowfs.pytest_plugin.options import (  # noqa: F401
        pytest_addoption,
        pytest_collection_modifyitems,
        pytest_configure,
    )


def __getattr__(name: str) -> object:
    """For the annotations of tests."""
    here = __name__
    modules = {
        "Clock": f"{here}.clock",
        "CowCrashes": f"{here}.crashes",
        "MountedDevice": f"{here}.mounted",
        "Snapshot": f"{here}.mounted",
    }
    module = (modules | {"Faults": "cowfs.faults.api"}).get(name)
    if module is None:
        raise AttributeError(f"module {here!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
