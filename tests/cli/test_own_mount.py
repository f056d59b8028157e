"""A server never waits for its own mount: files passed to it, its temporary files, where it looks for programs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cowfs.cli.app import run
from cowfs.devices.on_disk.files import HomeFiles
from cowfs.home.control.passed_file import may_be_read
from cowfs.home.serving.mounting import MountRequest
from cowfs.home.serving.surroundings import away_from
from tests.cli.mounted_home import MountedHome, has_ended

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


def served(mounted: MountedHome) -> Path:
    """The whole home mounted, with a tree and its archive in a device; where the device's files are."""
    mounted.run("layer", "create", "one")
    mounted.run("mount", mounted.target)
    web = mounted.target / "web"
    mounted.shell(f"mkdir '{web}/tree' && echo a > '{web}/tree/a' && tar -C '{web}/tree' -cf '{web}/a.tar' .")
    return web


def test_an_archive_on_the_mount_is_applied(mounted: MountedHome) -> None:
    web = served(mounted)
    mounted.shell(f"cowfs --home '{mounted.home}' layer apply one < '{web}/a.tar'")
    assert mounted.run("layer", "changes", "one").stdout == "A /a\n"
    mounted.run("umount", mounted.target)


def test_what_is_written_to_the_mount_arrives(mounted: MountedHome) -> None:
    web = served(mounted)
    mounted.shell(f"cowfs --home '{mounted.home}' layer apply one < '{web}/a.tar'")
    for command in ("layer diff one", "dump", "check"):
        mounted.shell(f"cowfs --home '{mounted.home}' {command} > '{web}/out' && test -s '{web}/out'")
    mounted.run("umount", mounted.target)


def test_a_client_that_passes_a_file_on_the_mount_is_refused(mounted: MountedHome) -> None:
    """Another program than ours; and all others are served meanwhile."""
    web = served(mounted)
    script = (
        "import os, socket, sys\n"
        "from pathlib import Path\n"
        "from cowfs.home.control import socket as control\n"
        "client = control.dial(Path(sys.argv[1]), 60)\n"
        "lines = client.makefile('rb')\n"
        "lines.readline()\n"
        "fd = os.open(sys.argv[2], os.O_RDONLY)\n"
        'socket.send_fds(client, [b\'{"op":"layer_apply","id":"one"}\\n\'], [fd])\n'
        "print(lines.readline().decode())\n"
    )
    said = mounted.account.run([sys.executable, "-c", script, mounted.home, web / "a.tar"]).stdout
    assert "not a regular one in memory or on the file system of the home" in said
    assert mounted.json("status")["holder_pid"]
    mounted.run("umount", mounted.target)


def test_which_files_may_be_read(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    file = home / "file"
    file.touch()
    memory = os.memfd_create("archive")
    receiver, sender = os.pipe()
    with file.open("rb") as beside, open("/proc/self/maps", "rb") as elsewhere, socket.socket() as no_file:
        cases = [(beside.fileno(), True), (memory, True), (elsewhere.fileno(), False), (receiver, False)]
        for fd, may in [*cases, (no_file.fileno(), False)]:
            assert may_be_read(fd, home) == may
    for fd in (memory, receiver, sender):
        os.close(fd)


@pytest.mark.parametrize("words", [["mount", "--foreground"], ["docker-plugin", "--socket", "/nowhere"]])
def test_no_server_looks_for_programs_or_modules_on_its_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    target = tmp_path / "home" / "mnt"
    target.mkdir(parents=True)
    (tmp_path / "link").symlink_to("home/mnt/web")
    leading = [str(target), f"{target}/web/bin", f"{tmp_path}/link", f"{tmp_path}/other/../home/mnt/bin"]
    others = ["/usr/bin", f"{target}-other", str(tmp_path)]
    monkeypatch.setenv("PATH", os.pathsep.join([*leading, *others]))
    seen = []

    def serve(*_: object, **__: object) -> None:
        seen.append(os.environ["PATH"].split(os.pathsep))

    monkeypatch.setattr("cowfs.home.serving.mount_server.serve_mount", serve)
    monkeypatch.setattr("cowfs.docker.plugin.serve.serve_plugin", serve)
    monkeypatch.setattr("cowfs.cli.serving.log_server", lambda _: None)
    where = [str(target)] if words[0] == "mount" else []
    assert run(["--home", str(target.parent), *words, *where]) == 0
    assert seen == [others]
    monkeypatch.setattr(sys, "path", [*leading, *others])
    with away_from(str(target), HomeFiles(str(target.parent)), read_only=False):
        assert sys.path == others


@pytest.mark.parametrize("path", ["home", "späte Grüße", os.fsdecode(b"no \xff text")])
def test_a_server_is_asked_for_the_same_mount_as_the_command(path: str) -> None:
    requests = [
        MountRequest(Path(path), "emulated", None, path),
        MountRequest(
            Path(path),
            "dmthin",
            path,
            "mnt",
            raw=True,
            storage_options=("dm.fs=ext4", path),
            lease_fd=7,
            durable=False,
            faults=path,
            runtime_directory=Path("run"),
        ),
    ]
    for request in requests:
        text = request.to_json()
        assert text.isascii()
        assert MountRequest.from_json(text) == request


@pytest.mark.parametrize("text", ["", "7", "{}", '{"home": "h", "backend": "emulated", "device": 7, "target": "t"}'])
def test_what_is_no_request_of_a_mount(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mount", "--as-server", "1", text]) == 2
    assert capsys.readouterr().err.startswith(f"cowfs: '{text}' is not the request of a mount: ")


def test_temporary_files_are_not_on_the_mount(mounted: MountedHome) -> None:
    """TMPDIR, PATH and PYTHONPATH lead to the mount; e2fsck and resize2fs run in the server."""
    target = str(mounted.target)
    environment = {
        "TMPDIR": target,
        "PATH": os.pathsep.join([f"{target}/web/bin", mounted.account.environment["PATH"]]),
        "PYTHONPATH": os.pathsep.join([mounted.account.environment["PYTHONPATH"], f"{target}/web"]),
    }
    mounted.run("create", "small")
    pid = mounted.json("mount", target)["holder_pid"]
    mounted.run("umount", target)
    mounted.wait_until(lambda: has_ended(pid))
    mounted.run("mount", target, env=environment)
    left = mounted.home / "cowfs.tmp"
    assert left.is_dir()
    mounted.run("resize", "small", "128M")
    mounted.run("layer", "create", "one", "small")
    mounted.shell(f"ls '{target}/one' '{target}/small'")
    mounted.run("check")
    mounted.run("umount", target)
    assert not left.exists()


def test_what_a_killed_server_left_is_removed_by_the_next(mounted: MountedHome) -> None:
    left = mounted.home / "cowfs.tmp"
    mounted.shell(f"mkdir '{left}' && echo x > '{left}/image'")
    mounted.run("mount", "web", mounted.target)
    assert left.is_dir()
    assert not (left / "image").exists()
    mounted.run("umount", mounted.target)
    assert not left.exists()


def test_what_a_server_in_the_foreground_says_touches_nothing(mounted: MountedHome) -> None:
    """tests/server_guard fails the run otherwise."""
    command = ["cowfs", "--home", mounted.home, "--json", "mount", "--foreground", "web", mounted.target]
    server = mounted.account.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == "{\n"
    server.terminate()
    assert str(mounted.target) in server.stdout.read()
    server.communicate()
    assert server.returncode == 0
