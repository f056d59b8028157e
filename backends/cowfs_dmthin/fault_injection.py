"""What tests do to kernel pools: put devices below them that can be made to fail, and change the no-space timeout.

See `cowfs.testing.conformance.lab`. Devices that fail need the kernel's `flakey` target (module dm-flakey).
"""

from __future__ import annotations

from contextlib import ExitStack

from cowfs.units import SECTOR_BYTES
from cowfs_dmthin import nodes
from cowfs_dmthin.abi import TargetLine
from cowfs_dmthin.control import Control
from cowfs_dmthin.loop import open_backing
from cowfs_dmthin.space_guard import TIMEOUT_PATH

_FOREVER_SECONDS = 1_000_000


class FailingDevice:
    """A device that passes everything on to a file or disk, until it is made to fail.

    Attributes:
        path: of its node.
    """

    def __init__(self, control: Control, name: str, path: str) -> None:
        self._control = control
        self._name = name
        with ExitStack() as undo:
            self._backing = open_backing(path, "backing")
            undo.callback(self._backing.close)
            number = control.create(name)
            undo.callback(control.remove_if_there, name)
            self.heal()
            self.path = nodes.node_path(number)
            undo.pop_all()

    def fail_writes(self) -> None:
        """Refuse every write and flush; reads go on."""
        self._switch("flakey", f"{self._backing.table_name} 0 0 {_FOREVER_SECONDS} 1 error_writes")

    def fail_everything(self) -> None:
        self._switch("error", "")

    def heal(self) -> None:
        """Work, and be as large as what is below."""
        self._switch("linear", f"{self._backing.table_name} 0")

    def close(self) -> None:
        self._control.remove_if_there(self._name)
        self._backing.close()

    def _switch(self, target: str, parameters: str) -> None:
        sectors = self._backing.refresh_size() // SECTOR_BYTES
        self._control.load(self._name, TargetLine(0, sectors, target, parameters))
        self._control.suspend(self._name, flush=False, freeze=False)
        self._control.resume(self._name)


def set_no_space_timeout(seconds: float) -> float:
    """How long full pools that fill up from now on let writes wait, on this machine; what it was. 0 is for ever."""
    with open(TIMEOUT_PATH, "r+", encoding="ascii") as file:
        before = float(file.read())
        file.seek(0)
        file.write(f"{seconds:.0f}\n")
    return before
