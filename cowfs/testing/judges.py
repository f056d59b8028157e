"""Outside opinions on a pool's metadata: cowfs' own recount and the `thin_check` tool.

A judge returns findings, one line each; none means clean. `require_clean` asks all of them and raises.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import closing
from typing import Final

from cowfs.blockdev import BlockDevice, FileDevice, copy_sparse
from cowfs.errors import MissingRequirement
from cowfs.pool import Pool
from cowfs.thinmeta.check import Severity, check

SYSTEM_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_TOOL_TIMEOUT_SECONDS: Final = 120


def require_clean(device: BlockDevice, *, strict: bool = False) -> None:
    """Raise AssertionError with every finding of every judge that can be had here.

    Args:
        strict: warnings of the recount count too: every counter must be exact.

    Raises:
        MissingRequirement: `thin_check` is not installed (the recount was clean).
    """
    findings = recount_findings(device, strict=strict) or thin_check_findings(device)
    if findings:
        raise AssertionError("the metadata is not clean:\n  " + "\n  ".join(findings))


def require_clean_file(path: str | os.PathLike[str]) -> None:
    """`require_clean` on a metadata file."""
    with closing(FileDevice(path, read_only=True)) as device:
        require_clean(device)


def require_clean_pool(pool: Pool, *, strict: bool = False) -> None:
    """`require_clean` on the committed metadata of an open pool."""
    with closing(pool.open_metadata()) as device:
        require_clean(device, strict=strict)


def recount_findings(device: BlockDevice, *, strict: bool = False) -> list[str]:
    """What cowfs' own recount finds; with `strict`, also where a counter lags without harm."""
    report = check(device)
    return [str(finding) for finding in report.findings if strict or finding.severity is not Severity.WARNING]


def has_thin_check() -> bool:
    return shutil.which("thin_check", path=SYSTEM_PATH) is not None


def thin_check_findings(device: BlockDevice) -> list[str]:
    """What `thin_check` says about a copy of the metadata, which may be in use."""
    tool = shutil.which("thin_check", path=SYSTEM_PATH)
    if tool is None:
        raise MissingRequirement("thin_check is not installed", remedy="apt-get install thin-provisioning-tools")
    with tempfile.NamedTemporaryFile(prefix="cowfs-judge-") as file:
        copy_sparse(device, file.fileno())
        loop = ""
        if not _has_direct_io(file.name):  # which the tool wants, and loop devices have
            loop = _call("losetup", "--find", "--show", "--read-only", file.name).stdout.strip()
        result = _call(tool, loop or file.name)
        if loop:
            _call("losetup", "--detach", loop)
    if result.returncode == 0:
        return []
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return [f"exit status {result.returncode}", *lines]


def _has_direct_io(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=_TOOL_TIMEOUT_SECONDS)
