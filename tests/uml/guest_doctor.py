"""What the dmthin backend says of a machine that lacks something, tried in a guest that is taken apart step by step.

Prints a JSON object for each state of the machine: what is missing, and the answer of the probe.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

from cowfs.pool import load_backend

_DELETE_MODULE = {"x86_64": 176, "aarch64": 106}[os.uname().machine]
_PROBE = "import sys; from tests.uml.guest_doctor import tell; tell(sys.argv[1])"


def tell(state: str) -> None:
    probe = load_backend("dmthin").probe()
    answer = {"state": state, "usable": probe.usable, "problem": probe.problem, "remedy": probe.remedy}
    print(json.dumps(answer), flush=True)


def tell_as(state: str, *change: str) -> None:
    """In a separate process, with fewer rights."""
    subprocess.run([*change, sys.executable, "-c", _PROBE, state], check=True)


def unload(*names: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for name in names:
        result = libc.syscall(_DELETE_MODULE, name.encode(), os.O_NONBLOCK)
        assert result == 0, (name, os.strerror(ctypes.get_errno()))


def main() -> None:
    tell_as("whole")
    tell_as("no root", "setpriv", "--reuid=65534", "--clear-groups")
    tell_as("root without CAP_SYS_ADMIN", "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    os.unlink("/dev/mapper/control")
    tell_as("no node of the control device, but the kernel has it")
    unload("loop")
    tell_as("no loop-control")
    unload("dm_thin_pool")
    tell_as("no thin-pool target")
    unload("dm_persistent_data", "dm_bio_prison", "dm_bufio", "dm_delay", "dm_flakey", "dm_mod")
    tell_as("no device mapper")


if __name__ == "__main__":
    main()
