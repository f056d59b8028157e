"""Running one command in a guest: streams, status, ways to end, and that nothing is left."""

from __future__ import annotations

import hashlib
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from cowfs.errors import MissingRequirement, UmlError
from cowfs.uml import UmlKernel, find_kernel, guest, init, run, run_captured
from cowfs.uml.processor import claimed_processor
from tests.conftest import Account

CLIENT = """
import sys
from pathlib import Path
from cowfs.uml import UmlKernel, run
kernel = UmlKernel(Path(sys.argv[1]), Path(sys.argv[2]))
sys.exit(run(sys.argv[3:], kernel=kernel, stdin=0))
"""


def client(kernel: UmlKernel, *argv: str) -> list[str]:
    return [sys.executable, "-c", CLIENT, str(kernel.executable), str(kernel.modules), *argv]


def guest_files(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith("cowfs-uml-")]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files, this test's alone; empty of guests at the end."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_streams_status_and_dm_thin(uml_kernel: UmlKernel, temporary: Path, rng: random.Random) -> None:
    sent = rng.randbytes(100_000)
    source = temporary / "input"
    source.write_bytes(sent)
    output: list[bytes] = []
    errors: list[bytes] = []
    script = "sha256sum; cat /proc/misc; head -c 300000 /dev/zero; echo to stderr >&2; pwd; echo $A; exit 7"
    with source.open("rb") as file:
        status = run(
            ["sh", "-c", script],
            kernel=uml_kernel,
            cwd=temporary,
            env={"PATH": "/usr/bin:/bin", "A": "a b'\"$c"},
            stdin=file.fileno(),
            stdout=output.append,
            stderr=errors.append,
        )
    assert status == 7
    text = b"".join(output)
    assert text.startswith(hashlib.sha256(sent).hexdigest().encode())
    assert b"device-mapper" in text
    assert b"loop-control" in text
    assert bytes(300_000) in text
    assert text.endswith(f"{temporary}\na b'\"$c\n".encode())
    assert b"".join(errors) == b"to stderr\n"
    assert not guest_files(temporary)


def test_what_the_host_takes_late_is_not_lost(uml_kernel: UmlKernel) -> None:
    """As much as fills the socket, and a part of the line: the guest would halt in a moment, and waits."""
    before = set(children_of(os.getpid()))
    output: list[bytes] = []

    def take_late(data: bytes) -> None:
        if not output:
            (guest,) = set(children_of(os.getpid())) - before
            pidfd = os.pidfd_open(guest)
            select.select([pidfd], [], [], 1)
            os.close(pidfd)
        output.append(data)

    command = [sys.executable, "-c", "import os; os.write(1, bytes(168_000))"]
    assert run(command, kernel=uml_kernel, stdout=take_late) == 0
    assert len(b"".join(output)) == 168_000


def test_output_arrives_while_the_command_runs(uml_kernel: UmlKernel) -> None:
    """The command waits for an answer to what it said, so output that came late would never come."""
    with subprocess.Popen(
        client(uml_kernel, "sh", "-c", "echo ready; read answer; echo got $answer"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"yes\n")
        process.stdin.close()
        assert process.stdout.read() == b"got yes\n"
    assert process.returncode == 0


def test_a_command_ended_by_a_signal(uml_kernel: UmlKernel, temporary: Path) -> None:
    assert run_captured(["sh", "-c", "kill -9 $$"], kernel=uml_kernel).returncode == 128 + signal.SIGKILL


def test_a_command_that_is_not_there(uml_kernel: UmlKernel, temporary: Path) -> None:
    with pytest.raises(UmlError, match="User-Mode Linux: no-such-command: No such file"):
        run(["no-such-command"], kernel=uml_kernel)
    assert not guest_files(temporary)


def test_time_runs_out(uml_kernel: UmlKernel, temporary: Path) -> None:
    with pytest.raises(UmlError, match="ended after 4 seconds") as caught:
        run(["sleep", "1000"], kernel=uml_kernel, timeout_seconds=4)
    assert caught.value.timed_out
    assert not guest_files(temporary)


def test_a_command_that_is_silent_for_too_long_is_ended(uml_kernel: UmlKernel, temporary: Path) -> None:
    with pytest.raises(UmlError, match="ended after 1 seconds without output") as caught:
        run(["sh", "-c", "echo up; exec sleep 1000"], kernel=uml_kernel, silence_seconds=1, timeout_seconds=1000)
    assert caught.value.timed_out
    assert not guest_files(temporary)


def test_each_piece_of_output_begins_a_new_silence(uml_kernel: UmlKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says a word, waits for an answer that comes 100 seconds later by the clock, and says the next."""
    passed_seconds = 0.0
    monkeypatch.setattr(guest, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed_seconds))
    reads, writes = os.pipe()

    def answer_late(word: bytes) -> None:
        nonlocal passed_seconds
        passed_seconds += 100
        os.write(writes, b"\n")

    script = "for word in 1 2 3; do echo $word; read answer; done"
    try:
        assert run(["sh", "-c", script], kernel=uml_kernel, silence_seconds=150, stdin=reads, stdout=answer_late) == 0
    finally:
        os.close(reads)
        os.close(writes)
    assert passed_seconds == 300


def test_a_guest_that_cannot_boot_shows_its_console(uml_kernel: UmlKernel, temporary: Path) -> None:
    with pytest.raises(UmlError, match=r"console said: .*memory") as caught:
        run(["true"], kernel=uml_kernel, memory_bytes=1 << 20)
    assert caught.value.message.isprintable()
    assert not guest_files(temporary)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_caller_that_is_ended_leaves_nothing(uml_kernel: UmlKernel, tmp_path: Path, number: signal.Signals) -> None:
    """Also after SIGKILL: the guest notices that its host side has ended, and halts."""
    process = subprocess.Popen(
        client(uml_kernel, "sh", "-c", "echo up; exec sleep 1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        # The guest inherits neither our pipe nor our descriptors, so end of file means that it is gone too.
        guests = children_of(process.pid)
        assert guests
        pidfds = [os.pidfd_open(pid) for pid in guests]
        process.send_signal(number)
    assert process.returncode == -number
    for pidfd in pidfds:
        wait_until_ended(pidfd)
    assert not guest_files(tmp_path)


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_ended(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(20_000), "the guest outlived its caller by 20 seconds"
    os.close(pidfd)


def test_several_at_once(uml_kernel: UmlKernel, temporary: Path) -> None:
    def one(number: int) -> str:
        return run_captured(
            ["sh", "-c", "cat; cat /sys/block/loop0/size"], kernel=uml_kernel, text_input=f"{number} "
        ).stdout

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, range(2))) == ["0 0\n", "1 0\n"]
    assert not guest_files(temporary)


def test_a_guest_has_a_processor_alone(uml_kernel: UmlKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = max(os.sched_getaffinity(0))
    monkeypatch.setattr("cowfs.uml.guest.claimed_processor", lambda: nullcontext(processor))
    found: list[set[int]] = []

    def look(_output: bytes) -> None:
        found.extend(os.sched_getaffinity(guest) for guest in children_of(os.getpid()) if guest not in before)

    before = children_of(os.getpid())
    assert run(["echo", "up"], kernel=uml_kernel, stdout=look) == 0
    assert found == [{processor}]


def test_a_processor_is_claimed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {-os.getpid(), -os.getpid() - (1 << 32)})
    with claimed_processor() as first, claimed_processor() as second, claimed_processor() as third:
        assert {first, second} == os.sched_getaffinity(0)
        assert third is None
    with claimed_processor() as again:
        assert again == first


def test_the_callers_rights_hold_inside(uml_kernel: UmlKernel, account: Account) -> None:
    """The guest's root is an ordinary user on the host's files."""
    folder = account.mkdir("place")
    script = f"id -u; echo mine >{folder}/file && (: >/etc/cowfs-test) 2>/dev/null && rm /etc/cowfs-test && echo root"
    if account.run(["test", "-x", uml_kernel.executable], check=False).returncode != 0:
        pytest.skip(f"{account.name} cannot reach {uml_kernel.executable}; run: sudo apt-get install user-mode-linux")
    result = account.run(client(uml_kernel, "sh", "-c", script), check=False)
    assert result.stdout.split() == (["0", "root"] if account.uid == 0 else ["0"]), result.stderr
    assert (folder / "file").read_text() == "mine\n"
    assert (folder / "file").stat().st_uid == account.uid


def test_missing_kernel_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cowfs.uml.kernel.kernel_below", lambda root: None)
    with pytest.raises(MissingRequirement, match="apt-get install user-mode-linux"):
        find_kernel(tmp_path)


def test_process_1_of_the_guest_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    # With harmless stand-ins: were the check gone, the test would fail and the machine would not halt.
    touched: list[str] = []
    monkeypatch.setattr(init, "Kernel", lambda: touched.append("kernel"))
    monkeypatch.setattr(init, "run_job", lambda *_arguments: touched.append("job"))
    with pytest.raises(SystemExit, match="process 1"):
        init.main("/nowhere")
    assert not touched
