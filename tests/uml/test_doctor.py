"""What the machine lacks is found by trying, and the command that helps is named."""

from __future__ import annotations

import json

from cowfs.uml import UmlKernel
from tests.kit.guests import run_in_guest

EXPECTED = {
    "whole": (True, "", ""),
    "no root": (False, "device mapper is for root (CAP_SYS_ADMIN)", "sudo cowfs"),
    "root without CAP_SYS_ADMIN": (False, "device mapper is for root (CAP_SYS_ADMIN)", "sudo cowfs"),
    "no node of the control device, but the kernel has it": (True, "", ""),
    "no loop-control": (False, "/dev/loop-control", "modprobe loop"),
    "no thin-pool target": (False, "not its thin-pool target", "modprobe dm-thin-pool"),
    "no device mapper": (False, "this kernel has no device mapper", "modprobe dm-thin-pool"),
}


def test_each_thing_that_is_missing_is_reported(uml_kernel: UmlKernel) -> None:
    done = run_in_guest(uml_kernel, "tests.uml.guest_doctor")
    assert done.returncode == 0, done.stderr
    found = {record["state"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == EXPECTED.keys()
    for state, (usable, problem, remedy) in EXPECTED.items():
        record = found[state]
        assert record["usable"] == usable, record
        assert problem in record["problem"], record
        assert remedy in record["remedy"], record
        if state in ("no root", "root without CAP_SYS_ADMIN", "no thin-pool target", "no device mapper"):
            assert "cowfs uml -- COMMAND" in record["remedy"]
