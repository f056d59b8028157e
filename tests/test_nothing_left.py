"""The session's own check: what a test leaves behind fails the run, is named, and is ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

LEAVES_A_PROCESS = """
import subprocess
def test_careless():
    process = subprocess.Popen(["sh", "-c", "echo $$ > {pid}; exec sleep 600"], start_new_session=True)
"""

LEAVES_A_MOUNT = """
import subprocess
def test_careless(tmp_path):
    point = tmp_path / "left mount"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
"""


INTERRUPTS_ITS_RUN = """
import os, signal, subprocess
from pathlib import Path
def test_interrupted(tmp_path, ordinary_root, fast_directory):
    for parent in (tmp_path, ordinary_root, fast_directory):
        point = parent / "left mount"
        point.mkdir()
        if os.geteuid() == 0:
            subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path("{report}").write_text(f"{{process.pid}} {{ordinary_root}} {{fast_directory}}")
    os.kill(os.getppid(), signal.SIGINT)
    os._exit(1)
"""


def run_session(directory: Path, test: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A pytest run of its own, with the real conftest and one test."""
    shutil.copy(REPOSITORY / "tests/conftest.py", directory)
    (directory / "test_one.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(directory)]
    options = ["-c", os.devnull, f"--basetemp={directory / 'base'}", *more, str(directory)]
    environment = os.environ | {"COWFS_TEST_GRACE_SECONDS": "0.1"}
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def test_a_process_is_found_named_and_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    result = run_session(tmp_path, LEAVES_A_PROCESS.format(pid=pid_file))
    pid = int(pid_file.read_text())
    assert result.returncode == 1
    assert f"process {pid}: sleep 600" in result.stdout
    assert has_ended(pid)


def test_a_mount_is_found_named_and_taken_away(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount; run: sudo make test")
    result = run_session(tmp_path, LEAVES_A_MOUNT)
    assert result.returncode == 1
    assert f"mount {tmp_path}/base/test_careless0/left mount" in result.stdout
    assert "left mount" not in Path("/proc/self/mountinfo").read_text().replace("\\040", " ")


def test_an_interrupted_run_cleans_up_after_its_workers(tmp_path: Path) -> None:
    report = tmp_path / "report"
    result = run_session(tmp_path, INTERRUPTS_ITS_RUN.format(report=report), "-n", "1")
    pid, *directories = report.read_text().split()
    assert result.returncode == pytest.ExitCode.INTERRUPTED, result.stdout
    assert f"process {pid}: sleep 600" in result.stderr
    assert has_ended(int(pid))
    mounted = Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in mounted
    for directory in directories:
        assert directory not in mounted
        assert not os.path.exists(directory)


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_tidy_session_passes(tmp_path: Path) -> None:
    result = run_session(tmp_path, "def test_tidy():\n    pass\n")
    assert result.returncode == 0, result.stdout
