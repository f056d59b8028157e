"""containerd's own suite on `cowfs snapshotter`, in this machine, this guest or this user namespace; nothing is left.

    python -m tests.containerd.run_suite RELEASE DIRECTORY BACKEND CHOSEN...

DIRECTORY is for the home, which is new, and has one round after the other: those tests that a CHOSEN matches, a pattern
of `-test.run`.
Raises AssertionError with what is not as it should be.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.containerd.grpc_client import GrpcClient, connected
from tests.containerd.server import OPTIONS, PATIENT, names
from tests.kit.containerd_suite import SUITES, Suite

WITHOUT_128_LAYERS = "TestCowfs/^[^1]"


def run(suite: Suite, directory: Path, backend: str, rounds: Sequence[str]) -> None:
    options = [word for option in [*OPTIONS, "dm.min_free_space=0%"] for word in ("--storage-opt", option)]
    cowfs = [sys.executable, "-m", "cowfs", "--home", str(directory / "home"), "--backend", backend]
    socket, log = directory / "s", directory / "log"
    with log.open("w") as stream:
        words = ["snapshotter", "--socket", str(socket), *PATIENT]
        server = subprocess.Popen([*cowfs, *options, *words], stderr=stream)
    try:

        def require_alive() -> None:
            assert server.poll() is None, log.read_text()

        with connected(socket, require_alive) as client:
            for chosen in rounds:
                pass_once(suite, socket, directory, chosen)
                remove_all(client)
        server.terminate()
        assert server.wait(120) == 0, log.read_text()
    finally:
        server.kill()
        server.wait()
    left = subprocess.run([*cowfs, "list"], capture_output=True, text=True, check=True).stdout
    assert "snapshot-" not in left, left
    check = subprocess.run([*cowfs, "pool", "check"], capture_output=True, text=True, check=False)
    assert check.stdout.startswith("clean"), check


def pass_once(suite: Suite, socket: Path, directory: Path, chosen: str) -> None:
    done = subprocess.run(
        [suite.require(), "-test.root", "-test.v", f"-test.run={chosen}"],
        env={**os.environ, "SNAPSHOTTER": str(socket), "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    is_without_one = chosen == WITHOUT_128_LAYERS
    assert done.stdout.count("--- PASS: TestCowfs/") == suite.passed - is_without_one, done.stdout
    assert done.stdout.count("--- SKIP: TestCowfs/") == suite.skipped, done.stdout


def remove_all(client: GrpcClient) -> None:
    """As containerd's garbage collection: children first."""
    while left := names(client):
        parents = {info.parent for answer in client.answers("List") for info in answer.info}
        for name in left:
            if name not in parents:
                client.call("Remove", key=name)


if __name__ == "__main__":
    release, directory, backend, *rounds = sys.argv[1:]
    run(SUITES[release], Path(directory), backend, rounds)
