"""A probe answers, whatever the machine answers it: what is missing is a result and never an error."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.errors import MissingRequirement, UmlError
from cowfs.home import machine
from cowfs.uml import kernel
from cowfs_dmthin import DmThinBackend
from cowfs_dmthin.control import Control


def _node_without_driver(path: Path) -> None:
    used = {int(line.split()[0]) for line in Path("/proc/misc").read_text().splitlines()}
    free = next(minor for minor in range(250, 0, -1) if minor not in used)
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(10, free))
    except PermissionError:
        pytest.skip("a device node can be made by root only; run the tests as root")


CONTROLS: dict[str, Callable[[Path], object]] = {
    "node without a driver": _node_without_driver,
    "regular file": Path.touch,
    "directory": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path),
    "pipe's far end": lambda path: path.symlink_to("/dev/null/control"),
}


@pytest.mark.parametrize("make", CONTROLS.values(), ids=CONTROLS)
def test_a_control_device_of_any_kind_is_reported(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "control"
    make(path)
    probe = DmThinBackend(Control(os.fspath(path))).probe()
    assert not probe.usable
    assert "device mapper" in probe.problem
    assert "cowfs uml -- COMMAND" in probe.remedy


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_the_probe_answers_every_errno(number: int) -> None:
    class Refusing(Control):
        def devices(self) -> dict[str, int]:
            raise OSError(number, os.strerror(number))

    probe = DmThinBackend(Refusing()).probe()
    assert not probe.usable
    assert probe.problem
    assert probe.remedy


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENODEV, "No such device"),
        UmlError("no guest"),
        ValueError("a defect"),
        subprocess.TimeoutExpired("uname", 1),
    ],
    ids=repr,
)
def test_a_probe_that_fails_does_not_keep_doctor_from_the_others(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(machine, "_fuse", fail)
    monkeypatch.setattr(machine, "_mount", lambda: "mounted")
    found = {ability.name: ability for ability in machine.examine(fail)}
    for name in ("fuse", "user-mode-linux"):
        assert not found[name].works
        assert str(error) in found[name].detail
    assert found["backend emulated"].works


def test_a_tool_that_does_not_run_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "thin_check"
    tool.write_bytes(b"\x7fELF of another machine")
    tool.chmod(0o755)
    monkeypatch.setattr(machine, "TOOL_DIRECTORIES", os.fspath(tmp_path))
    monkeypatch.setattr(machine, "_mount", lambda: "mounted")
    found = {ability.name: ability for ability in machine.examine(lambda: "booted")}
    assert not found["thin_check"].works
    assert "Exec format error" in found["thin_check"].detail
    assert found["thin_check"].remedy == "apt-get install thin-provisioning-tools"


def test_a_kernel_that_does_not_run_is_missing(tmp_path: Path) -> None:
    program = tmp_path / "uml/usr/bin/linux.uml"
    program.parent.mkdir(parents=True)
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o755)
    with pytest.raises(MissingRequirement, match="Exec format error"):
        kernel.kernel_below(tmp_path / "uml")
