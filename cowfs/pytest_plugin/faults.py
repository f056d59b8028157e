"""The fixture of faults on demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cowfs.faults.api import Faults


@pytest.fixture
def cow_faults(request: pytest.FixtureRequest) -> Iterator[Faults]:
    """Faults of the device of `cow_mount`, or of `cow_home` or `cow_device` where a test uses one of these instead.

    None is left after the test.
    """
    from cowfs.faults.api import Faults

    if "cow_mount" not in request.fixturenames and {"cow_home", "cow_device"} & set(request.fixturenames):
        home, device = request.getfixturevalue("cow_home"), "*"
    else:
        mount = request.getfixturevalue("cow_mount")
        home, device = mount.home, mount.name
    yield Faults(home, device=device)
    with suppress(OSError):  # the server has crashed, which a rule may have asked for
        home.clear_faults()
