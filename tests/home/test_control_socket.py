"""The control socket against everything that may come over it, and the client against a holder gone wrong."""

from __future__ import annotations

import errno
import functools
import json
import os
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import cowfs
from cowfs.devices.on_disk.lock import HomeLock
from cowfs.devices.reports import DeviceRow, HomeReport
from cowfs.error_record import HolderBug
from cowfs.errors import CowfsError, HomeBusy, HomeError, HomeVersionError, UsageError
from cowfs.home import session
from cowfs.home.control import socket as control_socket
from cowfs.home.control.client import Client
from cowfs.home.control.protocol import MAX_REPLY_BYTES, MAX_REQUEST_BYTES, SOCKET_NAME
from cowfs.home.control.server import Limits
from cowfs.home.executor import Views
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.requests.devices import CopyMetadata, Create, ListDevices, Status
from cowfs.home.requests.request import OpenFile
from tests.home.conftest import PATIENCE_SECONDS, serving

STATUS = b'{"op":"status"}\n'


class RawClient:
    """A connection that sends whatever it likes."""

    def __init__(self, home: Path) -> None:
        self.socket = control_socket.dial(home, PATIENCE_SECONDS)
        self.file = self.socket.makefile("rb")

    def read(self) -> Any:
        """The next line as a value; None at the end."""
        line = self.file.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@contextmanager
def raw_client(home: Path, *, greeted: bool = True) -> Iterator[RawClient]:
    client = RawClient(home)
    try:
        if greeted:
            assert client.read()["cowfs"] == 1
        yield client
    finally:
        client.close()


def assert_serves(home: Path) -> None:
    with cowfs.open_home(home) as opened:
        assert opened.holder_pid == os.getpid()
        assert opened.status().devices >= 1


# --------------------------------------------------------------------------------------------- the socket itself


def test_the_socket_is_its_owners_alone_and_goes_away(home: Path) -> None:
    with serving(home):
        status = os.lstat(home / SOCKET_NAME)
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert not (home / SOCKET_NAME).exists()


def test_a_stale_socket_is_replaced(home: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(home / SOCKET_NAME))
    stale.close()
    with cowfs.open_home(home) as opened:  # no process listens: the home is opened here
        assert opened.holder_pid is None
    with serving(home):
        assert_serves(home)


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(home: Path, kind: str) -> None:
    path = home / SOCKET_NAME
    make: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_text("mine"),
        "directory": path.mkdir,
        "link": lambda: path.symlink_to("/dev/null"),
    }
    make[kind]()
    with pytest.raises(AssertionError) as caught, serving(home):
        pass
    assert "is not a socket; move it away" in repr(caught.value)
    assert os.path.lexists(path)


def test_paths_longer_than_a_socket_address(tmp_path: Path, home: Path) -> None:
    deep = tmp_path / ("long" * 30) / ("path" * 30)
    deep.mkdir(parents=True)
    here = os.getcwd()
    home = home.rename(deep / "home")
    assert len(str(home)) > 108
    with serving(home):
        assert_serves(home)
    assert os.getcwd() == here


def test_other_users_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "peer_of", lambda _connection: (4711, os.geteuid() + 1000))
    with serving(home), pytest.raises(HomeError, match=r"process 4711 of uid .* may not use it") as caught:
        Client(home)
    assert caught.value.errno == errno.EPERM


def test_root_is_admitted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "peer_of", lambda _connection: (4711, 0))
    with serving(home):
        assert_serves(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user; run: sudo make test")
def test_another_user_who_can_reach_the_socket_is_refused(tmp_path: Path, ordinary_root: Path, home: Path) -> None:
    """The permission bits are not the only guard."""
    home = home.rename(ordinary_root / "open")
    with serving(home):
        home.chmod(0o755)
        (home / SOCKET_NAME).chmod(0o666)
        code = (
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect('cowfs.sock'); f = s.makefile(); "
            'print(f.readline()); s.send(b\'{"op":"create","name":"mine"}\\n\'); print(f.read())'
        )
        command = [os.path.realpath(sys.executable), "-c", code]  # an environment in root's home is closed to others
        result = subprocess.run(
            command, cwd=home, user="nobody", capture_output=True, text=True, timeout=60, check=False
        )
        (line,) = result.stdout.strip().splitlines()
        assert json.loads(line)["error"]["errno"] == errno.EPERM
        with cowfs.open_home(home) as opened:
            assert [row.name for row in opened.devices()] == ["base", "web"]


# --------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"hello\n",
        b"\x00\xff\xfe\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b'{"op":"format_everything"}\n',
        b'{"op":"status","surprise":1}\n',
        b'{"op":"create"}\n',
        b'{"op":"create","name":7}\n',
        b'{"op":"create","name":"x","size_bytes":"1G"}\n',
        b'{"op":"create","name":"x","size_bytes":1e400}\n',
        b'{"op":"create","name":"\\ud800"}\n',
        b'{"op":"inspect","name":"a","name":' + b"[" * 30000 + b"\n",
        b"[" * 60000 + b"\n",
    ],
    ids=lambda line: repr(line[:40]),
)
def test_a_bad_request_is_answered_and_the_next_one_served(served: Path, line: bytes) -> None:
    with raw_client(served) as client:
        client.socket.sendall(line)
        error = client.read()["error"]
        assert error["class"] == "UsageError"
        assert "trace" not in error
        client.socket.sendall(STATUS)
        assert client.read()["result"]["devices"] == 1


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "base", "x" * 256, "x.migrated", "a\nb", "a\0b"])
def test_bad_names_change_nothing(served: Path, name: str) -> None:
    with Client(served) as client, pytest.raises(UsageError):
        client.call(Create(name))
    with cowfs.open_home(served) as opened:
        assert [row.name for row in opened.devices()] == ["base", "web"]


def test_a_request_too_long_ends_the_connection(served: Path) -> None:
    with raw_client(served) as client:
        try:
            client.socket.sendall(b"x" * (4 * MAX_REQUEST_BYTES))
        except ConnectionError:
            pass  # it hung up before all was sent
        else:
            pass
        try:
            assert f"more than {MAX_REQUEST_BYTES} bytes" in client.read()["error"]["message"]
            assert client.read() is None
        except ConnectionError:
            pass  # what was not read resets the connection, maybe before its last words are
    assert_serves(served)


def test_requests_in_one_piece_are_answered_in_order(served: Path) -> None:
    with raw_client(served) as client:
        client.socket.sendall(STATUS + b"nonsense\n" + STATUS + STATUS[:5])
        assert "result" in client.read()
        assert "error" in client.read()
        assert "result" in client.read()
        client.socket.sendall(STATUS[5:])
        assert "result" in client.read()


# --------------------------------------------------------------------------------------------- bad clients


@pytest.mark.parametrize("sent", [b"", b'{"op":"sta', STATUS, b'{"op":"list"}\n' * 50, b'{"op":"copy_metadata"}\n'])
def test_clients_that_vanish_harm_no_other(served: Path, sent: bytes) -> None:
    for greeted in (False, True):
        with raw_client(served, greeted=greeted) as client:
            client.socket.sendall(sent)
    assert_serves(served)


def test_no_descriptor_is_left(home: Path) -> None:
    with serving(home):  # whatever is opened once and kept
        assert_serves(home)
    before = len(os.listdir("/proc/self/fd"))
    with serving(home):
        for _ in range(5):
            with raw_client(home) as client:
                client.socket.sendall(b'{"op":"copy_metadata"}\n')
            with Client(home) as good:
                os.close(good.call(CopyMetadata()).fd)
    assert len(os.listdir("/proc/self/fd")) == before


def many_rows(home: OpenHome) -> Iterator[DeviceRow]:
    for number in range(100_000):
        yield DeviceRow(f"device-{number}", number, 1 << 30, 0, 0, None, False, [])


def test_a_client_that_does_not_read_is_dropped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is longer than any socket buffer; others are served meanwhile, and afterwards it is gone."""
    monkeypatch.setattr(ListDevices, "run", lambda self, home: many_rows(home))
    with serving(home, limits=Limits(send_seconds=0.5)), raw_client(home) as client:
        client.socket.sendall(b'{"op":"list"}\n')
        assert client.read()["piece"]["name"] == "device-0"
        assert_serves(home)
        # Its connection ends in the middle of the answer: read on only after the server has given up.
        wait_for_hangup(client.socket)
        names = [json.loads(line)["piece"]["name"] for line in client.file if line.endswith(b"\n")]
        assert len(names) < 100_000
        assert_serves(home)


def wait_for_hangup(connection: socket.socket) -> None:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    assert poll.poll(PATIENCE_SECONDS * 1000), "the server did not hang up"


def test_a_client_that_says_nothing_is_dropped(home: Path) -> None:
    with serving(home, limits=Limits(idle_seconds=2.0)):
        with raw_client(home) as client:
            client.socket.sendall(b'{"op":')
            assert client.read() is None
        assert_serves(home)


def test_a_client_that_was_dropped_for_being_idle_connects_again(home: Path) -> None:
    with serving(home, limits=Limits(idle_seconds=1.0)), Client(home) as client:
        wait_for_hangup(client._socket)  # type: ignore[arg-type]
        assert client.call(Status()).devices == 1
        assert client.call(Status()).devices == 1


def test_too_many_clients_are_turned_away(home: Path) -> None:
    with serving(home, limits=Limits(clients_per_uid=2, grace_seconds=PATIENCE_SECONDS)):
        with raw_client(home), raw_client(home) as second:
            with pytest.raises(HomeError, match="too many clients") as caught:
                Client(home)
            assert caught.value.errno == errno.EAGAIN
            second.socket.sendall(STATUS)
            assert second.read()["result"]["devices"] == 1
        assert_serves(home)


def test_clients_of_a_holder_that_is_ending_wait_for_the_next_one(home: Path) -> None:
    def reach() -> int | None:
        with session.connect(HomeSpec(home), wait_seconds=PATIENCE_SECONDS) as opened:
            return opened.holder_pid

    with ThreadPoolExecutor(1) as thread:
        with serving(home) as server:
            server.refuse_clients()
            with pytest.raises(HomeError, match="is ending; try again") as caught:
                Client(home)
            assert caught.value.errno == errno.EAGAIN
            reached = thread.submit(reach)
        assert reached.result(PATIENCE_SECONDS) is None


def test_a_crowd_of_idle_clients_makes_room(home: Path) -> None:
    """The one that has kept the server waiting longest loses its place."""
    with serving(home, limits=Limits(clients_per_uid=3, grace_seconds=0.0)):
        with ExitStack() as idle:
            crowd = [idle.enter_context(raw_client(home)) for _ in range(3)]
            crowd[0].socket.sendall(STATUS)  # now it has waited the least
            assert "result" in crowd[0].read()
            with Client(home) as client:
                assert client.call(Status()).devices == 1
                assert crowd[1].read() is None
                for other in (crowd[0], crowd[2]):
                    other.socket.sendall(STATUS)
                    assert "result" in other.read()
        assert_serves(home)


def test_a_client_that_does_not_read_makes_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListDevices, "run", lambda self, home: many_rows(home))
    with serving(home, limits=Limits(clients_per_uid=1, grace_seconds=0.0)), raw_client(home) as deaf:
        deaf.socket.sendall(b'{"op":"list"}\n')
        with session.connect(HomeSpec(home), wait_seconds=PATIENCE_SECONDS) as opened:
            assert opened.call(Status()).devices == 1


def test_what_a_client_has_sent_keeps_its_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server was busy meanwhile, so it is not the client that was waited for."""
    arrived, go_on = threading.Event(), threading.Event()
    run = Status.run

    def slow(self: Status, home: OpenHome) -> HomeReport:
        arrived.set()
        assert go_on.wait(PATIENCE_SECONDS)
        return run(self, home)

    with (
        serving(home, limits=Limits(clients_per_uid=2, grace_seconds=0.0)),
        raw_client(home) as first,
        raw_client(home) as second,
    ):
        monkeypatch.setattr(Status, "run", slow)
        first.socket.sendall(STATUS)
        assert arrived.wait(PATIENCE_SECONDS)
        second.socket.sendall(STATUS)
        third = control_socket.dial(home, PATIENCE_SECONDS)
        go_on.set()
        with third:
            assert "result" in second.read()
            assert "result" in first.read()


def test_each_user_has_places_of_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uids = iter([1, 1, 0])
    monkeypatch.setattr(control_socket, "peer_of", lambda _connection: (4711, next(uids)))
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with (
        serving(home, limits=Limits(clients_per_uid=2, grace_seconds=PATIENCE_SECONDS)),
        raw_client(home),
        raw_client(home),
        raw_client(home) as third,
    ):
        third.socket.sendall(STATUS)
        assert "result" in third.read()


def test_descriptors_of_one_client_are_bounded(served: Path) -> None:
    with raw_client(served) as client, open(os.devnull, "rb") as file:
        before = len(os.listdir("/proc/self/fd"))
        with suppress(ConnectionError):
            for _ in range(500):
                client.socket.sendmsg([b" "], control_socket.file_message(file.fileno()))
        with suppress(ConnectionError):
            assert "more than 4 open files" in client.read()["error"]["message"]
            assert client.read() is None
        assert_serves(served)
        assert len(os.listdir("/proc/self/fd")) <= before


def test_being_out_of_descriptors_is_logged_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = 5
    wrap = trio.socket.from_stdlib_socket

    def wrap_failing(listener: socket.socket) -> trio.socket.SocketType:
        wrapped = wrap(listener)
        accept = wrapped.accept

        async def refuse() -> object:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return await accept()

        monkeypatch.setattr(wrapped, "accept", refuse)
        return wrapped

    monkeypatch.setattr(trio.socket, "from_stdlib_socket", wrap_failing)
    with serving(home):
        assert_serves(home)
    assert refusals == 0
    assert [record.message.count("Too many open files") for record in caplog.records] == [1]


# --------------------------------------------------------------------------------------------- a full backlog


@contextmanager
def full_backlog(home: Path) -> Iterator[socket.socket]:
    """A holder that accepts nothing, and as many clients waiting as can; gives its listener."""
    with ExitStack() as last:
        lock = HomeLock.acquire(str(home))
        last.callback(lock.release)
        listener = control_socket.listen(home)
        last.callback(control_socket.unlink, home)
        last.enter_context(listener)
        listener.listen(0)
        last.enter_context(control_socket.dial(home, PATIENCE_SECONDS))
        yield listener


def test_a_full_backlog_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_backlog(home) as listener:
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                listener.accept()[0].close()

        monkeypatch.setattr(time, "sleep", pause)
        control_socket.dial(home, PATIENCE_SECONDS).close()
    assert pauses == [0.01, 0.02, 0.04]


def test_a_backlog_that_stays_full_is_one_clear_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_backlog(home):
        monkeypatch.setattr(session, "_reach_holder", functools.partial(Client, greeting_seconds=0.1))
        with pytest.raises(HomeBusy, match=f"held by process {os.getpid()} .*; it does not answer"):
            session.connect(HomeSpec(home))


def test_the_backlog_has_room_for_a_crowd(home: Path) -> None:
    lock = HomeLock.acquire(str(home))
    try:
        with ExitStack() as crowd:
            crowd.enter_context(control_socket.listen(home))
            for _ in range(200):
                crowd.enter_context(control_socket.dial(home, 0.0))
    finally:
        control_socket.unlink(home)
        lock.release()


def test_a_long_listing_arrives_whole(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListDevices, "run", lambda self, home: many_rows(home))
    with serving(home), Client(home) as client:
        ids = [row.id for row in client.iterate(ListDevices())]
        assert ids == list(range(100_000))
        assert client.call(Status()).devices == 1


def test_a_listing_left_early_closes_the_connection(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListDevices, "run", lambda self, home: many_rows(home))
    with serving(home), Client(home) as client:
        rows = client.iterate(ListDevices())
        next(rows)
        with pytest.raises(HomeError, match="not read to its end"):
            client.call(Status())
        rows.close()  # type: ignore[attr-defined]
        assert client.call(Status()).devices == 1  # over a new one


def test_clients_at_the_same_time(served: Path) -> None:
    def work(number: int) -> list[int]:
        with cowfs.open_home(served) as opened:
            made = [opened.snapshot("web", f"copy-{number}-{i}").id for i in range(5)]
            opened.remove(f"copy-{number}-0")
            return made

    with ThreadPoolExecutor(8) as pool:
        ids = [thin_id for made in pool.map(work, range(8)) for thin_id in made]
    assert len(set(ids)) == 40
    with cowfs.open_home(served) as opened:
        assert len(opened.devices()) == 2 + 8 * 4
        assert opened.check().clean


# --------------------------------------------------------------------------------------------- snapshots in use


def test_a_device_in_use_is_quiesced_before_its_snapshot(home: Path) -> None:
    """What the view still holds reaches the device first, and nothing runs in between."""
    events: list[str] = []
    served: list[OpenHome] = []

    class LateViews(Views):
        async def write_back(self, device: str) -> None:
            await trio.lowlevel.checkpoint()
            events.append(f"write back {device}")
            if device == "web":
                served[0].devices.active.thins()["web"].pwrite(1 << 20, b"in the last moment")

    def prepare(opened: OpenHome) -> None:
        served.append(opened)
        opened.devices.active.activate("web")

    with serving(home, views=LateViews(), prepare=prepare), cowfs.open_home(home) as opened:
        opened.snapshot("web", "web-1")
        opened.create("fresh")
    assert events == ["write back web", "write back base"]
    with cowfs.open_home(home) as opened, opened.device("web-1") as disk:
        assert disk.pread(1 << 20, 18) == b"in the last moment"


def test_a_snapshot_is_refused_when_quiescing_fails(home: Path) -> None:
    class StuckViews(Views):
        async def write_back(self, device: str) -> None:
            raise OSError(errno.EIO, "the kernel keeps its pages")

    with serving(home, views=StuckViews()), cowfs.open_home(home) as opened:
        with pytest.raises(CowfsError, match="the kernel keeps its pages"):
            opened.snapshot("web", "web-1")
        assert [row.name for row in opened.devices()] == ["base", "web"]


def test_a_defect_of_the_holder_reaches_the_client_with_its_traceback(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Status, home: OpenHome) -> None:
        raise ZeroDivisionError("what a pity")

    with monkeypatch.context() as patch:
        patch.setattr(Status, "run", broken)
        with Client(served) as client, pytest.raises(HolderBug, match="in broken") as caught:
            client.call(Status())
        assert "what a pity" in str(caught.value)
    assert_serves(served)


# --------------------------------------------------------------------------------------------- bad holders


def test_a_home_held_in_silence_names_the_holder(home: Path) -> None:
    lock = HomeLock.acquire(str(home))
    try:
        with pytest.raises(HomeBusy, match=f"process {os.getpid()}") as caught:
            session.connect(HomeSpec(home), wait_seconds=0)
        assert caught.value.holder_pid == os.getpid()
    finally:
        lock.release()


def test_a_home_held_for_a_moment_is_waited_for(home: Path) -> None:
    lock = HomeLock.acquire(str(home))
    timer = threading.Timer(0.1, lock.release)
    timer.start()
    with session.connect(HomeSpec(home), wait_seconds=PATIENCE_SECONDS) as opened:
        assert opened.call(Status()).devices == 1
    timer.join()


@contextmanager
def false_holder(home: Path, *answers: bytes) -> Iterator[None]:
    """Something that holds the home and sends the same bytes to every client."""
    lock = HomeLock.acquire(str(home))
    listener = control_socket.listen(home)

    def run() -> None:
        try:
            while True:
                connection, _ = listener.accept()
                with connection:
                    for answer in answers:
                        connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(4096):
                        pass
        except OSError:
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(PATIENCE_SECONDS)
        control_socket.unlink(home)
        lock.release()


GREETING = b'{"cowfs":1,"pid":4711,"version":"0.1.0"}\n'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "ended before the answer was complete"),
        (b'{"resu', "ended before the answer was complete"),
        (b"what?\n", "not a reply"),
        (b'{"result":7}\n', "something else than was asked"),
        (b'{"piece":{}}\n', "with a sequence"),
        (b"x" * (2 * MAX_REPLY_BYTES), "a line of more than"),
    ],
)
def test_a_holder_that_answers_nonsense_is_an_error(home: Path, answer: bytes, said: str) -> None:
    with false_holder(home, GREETING, answer), Client(home) as client, pytest.raises(HomeError, match=said):
        client.call(Status())


def test_a_holder_that_hangs_up_without_a_word_is_waited_for(home: Path) -> None:
    with false_holder(home), pytest.raises(HomeBusy):
        session.connect(HomeSpec(home), wait_seconds=0)


def test_a_file_that_did_not_come_is_an_error(home: Path) -> None:
    answer = b'{"result":{"fd":0}}\n'
    with false_holder(home, GREETING, answer), Client(home) as client, pytest.raises(HomeError, match="no open file"):
        client.call(CopyMetadata())


def test_a_holder_of_another_version_is_named(home: Path) -> None:
    said = r"process 4711, which speaks version 2 .* version 9\.9"
    with (
        false_holder(home, b'{"cowfs":2,"pid":4711,"version":"9.9"}\n'),
        pytest.raises(HomeVersionError, match=said),
    ):
        Client(home)


def test_a_holder_that_does_not_greet_is_busy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = HomeLock.acquire(str(home))
    listener = control_socket.listen(home)
    try:
        monkeypatch.setattr(session, "_reach_holder", functools.partial(Client, greeting_seconds=0.1))
        with pytest.raises(HomeBusy, match="does not answer") as caught:
            session.connect(HomeSpec(home))
        assert caught.value.holder_pid == os.getpid()
    finally:
        listener.close()
        control_socket.unlink(home)
        lock.release()


def test_an_open_file_is_the_metadata(served: Path) -> None:
    with Client(served) as client:
        answer = client.call(CopyMetadata())
        assert isinstance(answer, OpenFile)
        with open(answer.fd, "rb") as file:
            assert len(file.read()) == (served / "devicemapper" / "metadata").stat().st_size
