"""How servers end: with layers that are got, with copies of their mount elsewhere, with a signal at any moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.mounted_home import MountedHome, has_ended
from tests.conftest import Account

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

IN_A_COPY = """
import mmap, sys
with open(sys.argv[1], "w+b") as file:
    file.write(b"clean" * 1000); file.flush()
    with mmap.mmap(file.fileno(), 5000) as memory:
        memory[4000:4005] = b"dirty"
        print("changed", flush=True)
        sys.stdin.readline()
"""


def sandbox(account: Account, *command: object) -> subprocess.Popen[str]:
    """A process in a separate mount namespace, where no unmount reaches."""
    user: list[object] = [] if account.uid == 0 else ["--map-root-user"]
    words = ["unshare", *user, "--mount", "--propagation", "private"]
    if shutil.which("unshare") is None or account.run([*words, "true"], check=False).returncode:
        pytest.skip(f"needs mount namespaces for {account.name}; run: sysctl kernel.unprivileged_userns_clone=1")
    return account.start([*words, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize("view", ["tree", "home", "raw"])
@pytest.mark.parametrize("way", ["cowfs umount", "fusermount3", "SIGTERM"])
def test_a_mount_that_another_namespace_has_copied_is_ended(mounted: MountedHome, view: str, way: str) -> None:
    target = mounted.target
    options = {"tree": ["web"], "home": [], "raw": ["--raw", "web"]}[view]
    words: list[str | Path] = [*options, target]
    pid = mounted.json("mount", *words)["holder_pid"]
    file = {"tree": target / "file", "home": target / "web/file", "raw": target / "web"}[view]
    script = IN_A_COPY if view != "raw" else IN_A_COPY.replace("w+b", "r+b")
    inside = sandbox(mounted.account, sys.executable, "-c", script, file)
    try:
        assert inside.stdout is not None
        assert inside.stdout.readline() == "changed\n"
        if way == "cowfs umount":
            mounted.run("umount", target)
            assert has_ended(pid)
        elif way == "SIGTERM":
            os.kill(pid, signal.SIGTERM)
        else:
            mounted.account.run(["fusermount3", "-u", target])
        mounted.wait_until(lambda: has_ended(pid))
        assert inside.poll() is None
        assert mounted.json("status")["holder_pid"] is None
    finally:
        inside.kill()
        inside.communicate()
    assert not mounted.is_mounted(target)
    mounted.run("mount", *words)
    where = str(file).replace(str(target), "mount point")
    assert mounted.shell(f"head -c 4010 '{where}' | tail -c 10") == "dirtyclean"
    mounted.run("umount", target)
    if view == "raw":
        mounted.run("remove", "web")


def test_files_in_use_of_a_detached_mount_are_served_although_it_has_a_copy(mounted: MountedHome) -> None:
    pid = mounted.json("mount", "web", mounted.target)["holder_pid"]
    inside = sandbox(mounted.account, "cat")
    command = ["sh", "-c", 'cd "$0" && echo there && read line && echo "$line" > file && echo done', mounted.target]
    user = mounted.account.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == "there\n"
        mounted.run("umount", "--lazy", mounted.target)
        mounted.wait_until(lambda: mounted.run("status").returncode == 0)
        answer, _ = user.communicate("kept\n", timeout=60)
        assert answer == "done\n"
        mounted.wait_until(lambda: has_ended(pid))
        assert inside.poll() is None
    finally:
        user.kill()
        inside.kill()
        inside.communicate()
    mounted.run("mount", "web", mounted.target)
    assert mounted.shell("cat 'mount point/file'") == "kept\n"
    mounted.run("umount", mounted.target)


def test_a_server_ends_in_order_while_a_layer_is_mounted(mounted: MountedHome) -> None:
    mounted.run("layer", "create", "one")
    command = ["cowfs", "--home", mounted.home, "mount", "--foreground", mounted.target]
    server = mounted.account.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert server.stdout is not None
    assert "is mounted at" in server.stdout.readline()
    path = mounted.run("layer", "get", "one").stdout.strip()
    mounted.shell(f"echo kept > '{path}/file'")
    server.send_signal(signal.SIGTERM)
    _, said = server.communicate(timeout=60)
    assert server.returncode == 0, said
    assert "held" not in said
    assert mounted.run("layer", "changes", "one").stdout == "A /file\n"


SIGNAL_AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
from cowfs.cli.app import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("module", ["attr", "sniffio", "pyfuse3", "cowfs.home.serving.served_home"])
def test_a_server_that_is_starting_ends_without_a_traceback(mounted: MountedHome, module: str) -> None:
    words = ["--home", mounted.home, "mount", "--foreground", "web", mounted.target]
    done = mounted.account.run([sys.executable, "-c", SIGNAL_AT_IMPORT, module, *words], check=False)
    assert (done.returncode, done.stderr) == (143, "cowfs: interrupted\n")
    assert not mounted.is_mounted(mounted.target)


CTRL_C_AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, {"ignored": signal.SIG_IGN, "as usual": signal.getsignal(signal.SIGINT)}[sys.argv.pop(1)])
from cowfs.cli import main
main()
"""


@pytest.mark.parametrize(("way", "status"), [("as usual", -signal.SIGINT), ("ignored", 0)])
def test_ctrl_c_before_there_is_a_command_leaves_no_traceback(way: str, status: int) -> None:
    words = [sys.executable, "-c", CTRL_C_AT_IMPORT, way, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, "")


SIGNAL_WHEN_READY = """
import os, signal, sys
from cowfs.cli import mounting, output
stands = mounting.outcome_stands
def then_signal():
    stands()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
def signal_then():
    os.kill(os.getpid(), signal.SIGTERM)
    stands()
mounting.outcome_stands = {"before": signal_then, "after": then_signal}[sys.argv[1]]
from cowfs.cli.app import main
main(sys.argv[2:])
"""


def test_a_signal_in_the_last_moment_of_mount(mounted: MountedHome) -> None:
    """Either it is undone, or it is mounted and the status says so."""
    words = ["--home", mounted.home, "mount", "web", mounted.target]
    done = mounted.account.run([sys.executable, "-c", SIGNAL_WHEN_READY, "before", *words], check=False)
    assert done.returncode == 143
    assert not mounted.is_mounted(mounted.target)
    done = mounted.account.run([sys.executable, "-c", SIGNAL_WHEN_READY, "after", *words], check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert mounted.is_mounted(mounted.target)
    mounted.run("umount", mounted.target)


def test_a_ready_server_in_the_foreground_ends_with_0_by_sigterm(mounted: MountedHome, tmp_path: Path) -> None:
    command = ["cowfs", "--home", mounted.home, "mount", "--foreground", "web", mounted.target]
    server = mounted.account.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert server.stdout is not None
    assert "is mounted at" in server.stdout.readline()
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)
    assert server.returncode == 0
    assert not mounted.is_mounted(mounted.target)
