"""The snapshotter as a service: its configuration file, a socket that is passed to it, and the units of systemd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.cli.settings import LogOptions
from cowfs.cli.snapshotter_config import read_config
from cowfs.errors import UsageError
from tests.conftest import Account
from tests.containerd.grpc_client import GrpcClient
from tests.containerd.server import OPTIONS

REPOSITORY = Path(__file__).resolve().parent.parent.parent
UNITS = REPOSITORY / "systemd"

CONFIG = """\
# of a test
home = "home"
storage-opt = [
  "dm.loopdatasize=256M",
  "dm.loopmetadatasize=4M",
  "dm.basesize=32M",
]
verbose = 1
"""


def test_a_configuration_has_the_options_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    config = read_config(str(tmp_path / "c.toml"))
    assert config.home == "home"
    assert list(config.storage_opt) == OPTIONS
    assert config.log_options == LogOptions(verbosity=1)
    assert config.socket is config.backend is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("sokcet = '/s'", "line 9: 'sokcet' is not an option of a snapshotter, which has home, backend, storage-opt"),
        ("[plugins]\nx = 1", "line 9: 'plugins' is not an option"),
        ("socket = 1", "line 9: 'socket': expected 'str | null', got 'int'"),
        ("quiet = true", "line 9: quiet shows less and verbose more"),
        ("home = 'b'", "is not TOML: cannot overwrite a value"),
        ("x", "is not TOML: expected '='"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_said(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "c.toml").write_text(f"{CONFIG}{line}\n")
    with pytest.raises(UsageError) as caught:
        read_config(str(tmp_path / "c.toml"))
    assert problem in caught.value.message
    assert str(tmp_path / "c.toml") in caught.value.message
    assert "\n" not in caught.value.message


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--config: cannot read .*none\.toml: No such file"):
        read_config(str(tmp_path / "none.toml"))
    (tmp_path / "c.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not a text in UTF-8"):
        read_config(str(tmp_path / "c.toml"))


@pytest.fixture
def listener(account: Account) -> Iterator[socket.socket]:
    """As systemd has it: bound, listening, and no process answers yet."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(account.directory / "passed.sock"))
        os.chown(account.directory / "passed.sock", account.uid, account.gid)
        made.listen()
        yield made


def start(account: Account, fd: int, *words: object, **environment: str) -> subprocess.Popen[str]:
    """The snapshotter as the process to which a descriptor is passed."""
    script = 'exec 3<&"$1"; shift; LISTEN_PID=$$ exec "$@"'
    command = ["bash", "-c", script, "bash", fd, "cowfs", "snapshotter", "--config", "c.toml", *words]
    variables = {"LISTEN_FDS": "1", **environment}
    return account.start(command, env=variables, pass_fds=(fd,), stderr=subprocess.PIPE)


@pytest.mark.fuse
def test_a_passed_socket_is_served_and_stays(account: Account, needs_fuse: None, listener: socket.socket) -> None:
    """Who dials before the snapshotter is there waits; the manager is told when it is; metrics are there meanwhile."""
    (account.directory / "c.toml").write_text(CONFIG)
    for name in ("one", "two"):
        with (
            GrpcClient(account.directory / "passed.sock") as client,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        ):
            manager.bind(str(account.directory / f"notify-{name}"))
            os.chown(account.directory / f"notify-{name}", account.uid, account.gid)
            manager.settimeout(60)
            notify = str(account.directory / f"notify-{name}")
            process = start(account, listener.fileno(), NOTIFY_SOCKET=notify)
            client.call("Prepare", key=name)
            assert manager.recv(100) == b"READY=1"
            metrics = account.run(["cowfs", "--home", "home", "metrics"]).stdout
            assert 'operation="write"' in metrics or "cowfs_pool" in metrics
            assert metrics.endswith("# EOF\n")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert (account.directory / "passed.sock").is_socket()


@pytest.mark.parametrize(
    ("count", "words", "problem"),
    [
        ("2", [], "passed 2 sockets; one ListenStream= is needed"),
        ("1", ["--socket", "elsewhere"], "and the socket must be 'elsewhere'; name one place only"),
    ],
)
def test_a_socket_that_is_passed_wrongly_is_refused(
    account: Account, listener: socket.socket, count: str, words: list[str], problem: str
) -> None:
    (account.directory / "c.toml").write_text(CONFIG)
    process = start(account, listener.fileno(), *words, LISTEN_FDS=count)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert problem in said
    assert not (account.directory / "home").exists()


def test_a_snapshotter_needs_a_place_to_listen(account: Account) -> None:
    done = account.run(["cowfs", "--home", "home", "snapshotter"], check=False)
    assert done.returncode == 2
    assert "name --socket PATH, or 'socket' in a --config FILE" in done.stderr


def test_block_devices_need_a_backend_that_has_them(account: Account) -> None:
    words = ["cowfs", "--home", "home", "snapshotter", "--socket", "s", "--block-devices"]
    done = account.run(words, check=False)
    assert done.returncode == 3
    assert "cannot be block devices: the backend 'emulated' has none; try: cowfs --backend dmthin" in done.stderr
    assert not (account.directory / "home").exists()


def test_the_units_are_understood_by_systemd(tmp_path: Path) -> None:
    """Their program is found where it is here; systemd looks for it in the system's directories."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing; run: apt-get install systemd")
    program = shutil.which("true")
    for unit in UNITS.glob("*.s*"):
        text = unit.read_text().replace("ExecStart=cowfs ", f"ExecStart={program} ")
        (tmp_path / unit.name).write_text(text)
    paths = sorted(map(str, tmp_path.iterdir()))
    assert len(paths) == 2
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths], env=environment, capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if "cowfs" in line] == []
    assert done.returncode == 0, done.stderr


def test_the_example_of_a_configuration_is_one() -> None:
    config = read_config(str(UNITS / "snapshotter.toml"))
    assert config.home == "/var/lib/cowfs"
    commented = [
        line.removeprefix("# ") for line in (UNITS / "snapshotter.toml").read_text().splitlines() if " = " in line
    ]
    assert {line.partition(" = ")[0] for line in commented} <= {"home", "backend", "storage-opt", "containerd"}
