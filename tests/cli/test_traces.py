"""Traces by the command line, of a mounted tree and of a disk, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.mounted_home import SMALL, MountedHome, kill_and_wait

if TYPE_CHECKING:
    from tests.conftest import Account

pytestmark = pytest.mark.fuse


def test_traces_by_the_command_line(account: Account, needs_fuse: None) -> None:
    mounted = MountedHome(account)
    mounted.run("init", *SMALL)
    mounted.run("create", "web")
    path = account.directory / "t.trace"
    mounted.run("mount", "--raw", "web", mounted.target)
    try:
        # Known requests to a disk, while a command runs, whose exit status is that of the trace.
        script = (
            "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR)\n"
            "os.pwrite(fd, b'x' * 8192, 20480); os.fsync(fd); os.pwrite(fd, b'x' * 4096, 32 << 20); sys.exit(7)"
        )
        command = ["python3", "-c", script, str(mounted.target / "web")]
        ended = mounted.run("trace", "web", "-o", path, "--", *command, check=False)
        assert ended.returncode == 7, ended.stderr
        lines = [
            json.loads(line) for line in mounted.run("--json", "trace", "show", path, "--requests").stdout.splitlines()
        ]
        found = [(line["kind"], line["offset"], line["length"]) for line in lines]
        assert [one for one in found if one[0] != "read"] == [
            ("write", 20480, 8192),
            ("flush", 0, 0),
            ("write", 32 << 20, 4096),
        ]
        assert account.start(["touch", "plain"]).wait() == 0
        assert path.stat().st_mode == (account.directory / "plain").stat().st_mode
        assert "exists; name another file" in mounted.refused(2, "trace", "web", "-o", path)
        never = account.directory / "never.trace"
        assert "no program 'nosuch'" in mounted.refused(127, "trace", "web", "-o", never, "--", "nosuch")
        assert not never.exists()

        # Into a pipe, and to a device, of which no figures can be shown.
        words = [
            "cowfs",
            "--home",
            mounted.home,
            "trace",
            "web",
            "-o",
            "/dev/stdout",
            "--",
            "sync",
            mounted.target / "web",
        ]
        mounted.shell(f"{shlex.join(map(str, words))} | cat > piped.trace")
        assert mounted.run("--json", "trace", "show", account.directory / "piped.trace").stdout
        assert mounted.run("trace", "web", "-o", os.devnull, "--", "true").stdout == ""

        # Afterwards nothing is recorded, and another trace may begin. Ctrl-C ends it.
        second = account.directory / "second.trace"
        tracer = account.start(
            ["cowfs", "--home", mounted.home, "trace", "web", "-o", second],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert tracer.stderr is not None
        assert tracer.stderr.readline() == "cowfs: recording the requests of web; Ctrl-C ends the trace\n"
        assert "is traced already" in mounted.refused(5, "trace", "web", "-o", account.directory / "third.trace")
        assert not (account.directory / "third.trace").exists()
        account.run(
            ["dd", "if=/dev/zero", f"of={mounted.target}/web", "bs=64k", "count=1", "seek=99", "conv=notrunc,fsync"]
        )
        tracer.send_signal(signal.SIGINT)
        said, _ = tracer.communicate(timeout=60)
        assert tracer.returncode == 0
        assert said.startswith("recorded ")
        shown = mounted.json("trace", "show", second)
        assert (shown["device"], shown["device_size_bytes"], shown["is_whole"]) == ("web", 64 << 20, True)
        assert shown["kinds"]["write"]["size_bytes"] == 65536
        mounted.run("umount", mounted.target)
        mounted.run("create", "files")

        # Of a tree: what ext4 writes, until the server is killed. The prefix stays readable.
        mounted.run("mount", "files", mounted.target)
        tree = account.directory / "tree.trace"
        tracer = account.start(
            ["cowfs", "--home", mounted.home, "trace", "files", "-o", tree],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert tracer.stderr is not None
        tracer.stderr.readline()
        account.run(
            ["sh", "-c", 'for i in 1 2 3; do echo $i > "$0/$i" && sync "$0/$i" && sleep 0.15; done', mounted.target]
        )
        kill_and_wait(mounted.json("status")["holder_pid"])
        _, problem = tracer.communicate(timeout=60)
        assert tracer.returncode == 5
        assert "the process that served 'files' ended before the trace" in problem
        shown = mounted.json("trace", "show", tree)
        assert not shown["is_whole"]
        assert shown["kinds"]["flush"]["requests"] >= 2
        assert shown["kinds"]["write"]["requests"] >= 3
        account.run(["fusermount3", "-uz", mounted.target], check=False)

        # Conversions keep the requests.
        account.run(["cowfs", "trace", "convert", second, account.directory / "s.iolog"])
        again = mounted.json("trace", "show", account.directory / "s.iolog")
        assert (again["format"], again["kinds"]["write"]["size_bytes"]) == ("iolog", 65536)
    finally:
        if os.path.ismount(mounted.target):
            mounted.run("umount", mounted.target)
