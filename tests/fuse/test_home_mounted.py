"""The home view beside something else in its process that uses the same volumes, as the layer driver does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Account
from tests.fuse.conftest import Serve, Served

pytestmark = pytest.mark.fuse


@pytest.fixture
def home(account: Account, serve: Serve) -> Served:
    return serve(account, "home", account.mkdir("state"))


def ask(home: Served, *words: str) -> str:
    """Have the server do something, and its answer."""
    directory: Path = home.account.directory / "state"
    request, answer = directory / "request", directory / "answer"
    (directory / "request.part").write_text(" ".join(words))
    os.chown(directory / "request.part", home.account.uid, home.account.gid)
    (directory / "request.part").rename(request)
    deadline = time.monotonic() + 60
    while not answer.exists():
        assert time.monotonic() < deadline, home.logged()
        time.sleep(0.02)
    text = answer.read_text()
    answer.unlink()
    return text


def test_what_changes_in_the_process_is_seen_at_once(home: Served) -> None:
    """Names that were there and names that were not, sizes and contents; also of a file that is open."""
    read = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "def look(): print(os.path.exists('new'), os.stat('f').st_size, os.pread(f.fileno(), 99, 0), flush=True)\n"
        "f = open('f', 'rb', buffering=0)\n"
        "look()\n"
        "sys.stdin.readline()\n"
        "look()\n"
    )
    run = home.account.run
    run(["sh", "-ec", 'echo first >"$0"/a/f; cat "$0"/a/f; ! test -e "$0"/a/new', home.target])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    reader = home.account.start([sys.executable, "-c", read, home.target / "a"], **pipes)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "False 6 b'first\\n'\n"
        ask(home, "write", "a", "f", "second,longer")
        ask(home, "write", "a", "new", "text")
        said, _ = reader.communicate("\n", timeout=60)
    finally:
        reader.kill()
    assert said == "True 13 b'second,longer'\n"
    assert run(["cat", home.target / "a/f", home.target / "a/new"]).stdout == "second,longertext"
    assert home.end() == 0
    assert "left open: []" in home.logged()


def test_a_held_device_is_not_let_go(home: Served) -> None:
    assert ask(home, "close-if-idle", "a") == "True False"
    assert ask(home, "hold", "a") == str(home.target / "a")
    home.account.run(["ls", home.target / "a", home.target / "b"])
    assert ask(home, "close-if-idle", "a") == "False True"
    assert ask(home, "close-if-idle", "b") == "True False"
    assert ask(home, "end-hold", "a") == "done"
    assert ask(home, "close-if-idle", "a") == "True False"
    assert ask(home, "end-hold", "a") == "UsageError"
    assert ask(home, "hold", "c") == "UnknownDevice"
    assert home.end() == 0


def test_what_is_mounted_inside_a_device_is_not_taken_away(root_user: Account, serve: Serve) -> None:
    """Bind mounts are in use too: one of a directory in a device, and one on top of such a directory."""
    home = serve(root_user, "home", root_user.mkdir("state"))
    outside = root_user.mkdir("outside")
    run = root_user.run
    inside = home.target / "a" / "dir"
    run(["sh", "-ec", 'mkdir "$0"; echo text >"$0"/f', inside])
    for source, target in ((inside, outside), (outside, inside)):
        run(["mount", "--bind", source, target])
        try:
            assert ask(home, "close-if-idle", "a") == "False True"
            assert run(["findmnt", "-n", target]).stdout
        finally:
            run(["umount", target])
    assert ask(home, "close-if-idle", "a") == "True False"
    assert run(["cat", inside / "f"]).stdout == "text\n"
    assert home.end() == 0
