"""The guard that all servers of the tests run under sees what it is there for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOUCH = """
import ctypes, os, shutil, subprocess, sys, tempfile
from pathlib import Path
from cowfs.mounts.mountpoint import SERVED
target, code = sys.argv[1:]
SERVED[target] = "0:1"
path = target + "/file"
try:
    eval(code)
except AssertionError as error:
    sys.exit(f"seen: {error}")
"""


@pytest.mark.parametrize(
    "code",
    [
        "open(path)",
        "os.path.realpath(path)",
        "os.path.realpath(target)",
        "os.path.exists(path)",
        "os.path.ismount(target)",
        "Path(path).is_dir()",
        "os.stat(os.fsencode(path))",
        "os.lstat(Path(path))",
        "os.access(path, 0)",
        "os.statvfs(target)",
        "shutil.disk_usage(target)",
        "shutil.which('file', path=target)",
        "os.listdir(target)",
        "list(Path(target).iterdir())",
        "os.scandir(target)",
        "os.chdir(target)",
        "os.mkdir(path)",
        "os.unlink(path)",
        "os.rename('/nowhere', path)",
        "os.getxattr(path, 'user.a')",
        "tempfile.TemporaryFile(dir=target)",
        "ctypes.CDLL(path)",
        "subprocess.run(['true'], cwd=target)",
    ],
)
def test_a_touch_is_seen(tmp_path: Path, code: str) -> None:
    log = tmp_path / "log"
    log.touch()
    environment = {**os.environ, "COWFS_SERVER_GUARD": str(log)}
    target = str(tmp_path / "mnt")
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, target, code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("seen: "), (code, done)
    assert target in log.read_text()


def test_what_is_elsewhere_is_not(tmp_path: Path) -> None:
    for code in ("os.path.realpath(target + '-other')", "subprocess.run(['true', path])", "os.stat('/proc/self')"):
        done = subprocess.run([sys.executable, "-c", TOUCH, str(tmp_path / "mnt"), code], check=False)
        assert done.returncode == 0
