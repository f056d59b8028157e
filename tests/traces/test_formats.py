"""Traces in every format: what is written is read again, fio and blkparse agree, nothing broken passes for a trace."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.errors import UsageError
from cowfs.traces import file
from cowfs.traces.formats import FormatName, format_of, open_trace, write_trace
from cowfs.traces.requests import (
    DISCARD,
    FLUSH,
    FURTHEST_BYTES,
    READ,
    WRITE,
    ZERO,
    Reading,
    Trace,
    TracedRequest,
    TraceEnd,
    TraceHeader,
)
from cowfs.traces.summary import summarize

MIB = 1 << 20
HEADER = TraceHeader("web", 64 * MIB, 1_700_000_000.25)


def trace_of(requests: list[TracedRequest], *, is_whole: bool = True) -> Trace:
    def read() -> Reading:
        yield from requests
        return TraceEnd(is_whole)

    return Trace("memory", "memory", HEADER, read)


def written(path: Path, requests: list[TracedRequest], kind: FormatName, name: str = "disk") -> Trace:
    with path.open("wb") as out:
        write_trace(trace_of(requests), out, kind, file_name=name)
    return open_trace(str(path))


def require_one_line(error: UsageError) -> None:
    assert "\n" not in str(error)


@st.composite
def traces(draw: st.DrawFn, unit: int = 1, furthest: int = FURTHEST_BYTES) -> list[TracedRequest]:
    """Requests in the order of their times, whose places are multiples of a unit."""
    found, now = [], 0
    for _ in range(draw(st.integers(0, 30))):
        now += draw(st.integers(0, 10**9))
        kind = draw(st.sampled_from([READ, WRITE, FLUSH, DISCARD, ZERO]))
        length = draw(st.integers(1, (1 << 29) // unit)) * unit
        offset = draw(st.integers(0, (furthest - length) // unit)) * unit
        if kind == FLUSH:
            found.append(TracedRequest(now, FLUSH, 0, 0))
        else:
            found.append(TracedRequest(now, kind, offset, length, kind == WRITE and draw(st.booleans())))
    return found


@given(traces())
def test_our_own_format_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory, requests: list[TracedRequest]
) -> None:
    trace = written(tmp_path_factory.getbasetemp() / "t.trace", requests, "trace")
    assert list(trace.requests()) == requests
    assert (trace.header, trace.end) == (HEADER, TraceEnd())


@given(traces(), st.sampled_from(["iolog", "iolog3"]))
def test_iologs_keep_what_they_have_words_for(
    tmp_path_factory: pytest.TempPathFactory, requests: list[TracedRequest], kind: FormatName
) -> None:
    trace = written(tmp_path_factory.getbasetemp() / "t.iolog", requests, kind)
    wanted = []
    for _, kind_, offset, length, sync in requests:
        if kind_ != FLUSH:
            wanted.append((WRITE if kind_ == ZERO else kind_, offset, length))
        if kind_ == FLUSH or sync:
            wanted.append((FLUSH, 0, 0))
    found = list(trace.requests())
    assert [request[1:4] for request in found] == wanted
    times = [request.time_ns for request in requests for _ in range(1 + request.sync)]
    slack_ns = 1000 if kind == "iolog3" else 101_000  # whole microseconds; waits of at least 100
    assert all(0 <= there - here < slack_ns for there, here in zip(times, (r.time_ns for r in found), strict=True))


@given(traces(unit=512, furthest=1 << 50))
def test_blktrace_keeps_whole_sectors(tmp_path_factory: pytest.TempPathFactory, requests: list[TracedRequest]) -> None:
    trace = written(tmp_path_factory.getbasetemp() / "t.blktrace.0", requests, "blktrace")
    began = requests[0].time_ns if requests else 0
    wanted = [r._replace(time_ns=r.time_ns - began, kind=WRITE if r.kind == ZERO else r.kind) for r in requests]
    assert list(trace.requests()) == wanted


REQUESTS = [
    TracedRequest(0, READ, 4096, 4096),
    TracedRequest(150_000, WRITE, 8192, 65536),
    TracedRequest(151_000, WRITE, 8 * MIB, 512, sync=True),
    TracedRequest(400_000, FLUSH, 0, 0),
    TracedRequest(600_000, DISCARD, MIB, MIB),
    TracedRequest(2_000_000, ZERO, 0, 4096),
]


def test_partial_sectors_become_whole_ones(tmp_path: Path) -> None:
    found = written(tmp_path / "t.blktrace.0", [TracedRequest(0, WRITE, 1000, 100)], "blktrace")
    assert list(found.requests()) == [TracedRequest(0, WRITE, 512, 1024)]


def test_long_requests_become_several_events(tmp_path: Path) -> None:
    found = written(tmp_path / "t.blktrace.0", [TracedRequest(0, DISCARD, 0, 5 << 30)], "blktrace")
    assert sum(request.length for request in found.requests()) == 5 << 30


# ------------------------------------------------------------------------------------ judges


@pytest.mark.parametrize("kind", ["iolog", "iolog3", "blktrace"])
def test_fio_replays_what_is_written(tmp_path: Path, kind: FormatName) -> None:
    path, disk = tmp_path / f"t.{kind}", tmp_path / "disk"
    requests = [request for request in REQUESTS if request.kind != DISCARD]  # a file takes none from fio
    written(path, requests, kind, str(disk))
    disk.write_bytes(bytes(16 * MIB))
    command = ["fio", "--name=replay", f"--read_iolog={path}", "--ioengine=psync", "--output-format=json"]
    options = [] if kind != "blktrace" else [f"--replay_redirect={disk}"]
    result = subprocess.run([*command, *options], check=True, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    (job,) = json.loads(result.stdout[result.stdout.index("{") :])["jobs"]
    assert job["error"] == 0
    assert (job["read"]["total_ios"], job["read"]["io_bytes"]) == (1, 4096)
    assert (job["write"]["total_ios"], job["write"]["io_bytes"]) == (3, 65536 + 512 + 4096)
    assert any(disk.read_bytes()[8192 : 8192 + 65536])


def test_an_iolog_of_fio_is_read(tmp_path: Path) -> None:
    disk, log = tmp_path / "disk", tmp_path / "fio.log"
    disk.write_bytes(bytes(MIB))
    command = ["fio", "--name=made", f"--filename={disk}", "--rw=randrw", "--bs=4k", "--size=1M", "--io_size=128k"]
    command += ["--fdatasync=4", "--randseed=7", f"--write_iolog={log}", "--output-format=json"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    (job,) = json.loads(result.stdout[result.stdout.index("{") :])["jobs"]
    trace = open_trace(str(log))
    found = summarize(trace)
    assert found.device == str(disk)
    assert found.kinds["read"].requests == job["read"]["total_ios"]
    assert found.kinds["write"].requests == job["write"]["total_ios"]
    assert found.kinds["read"].size_bytes + found.kinds["write"].size_bytes == 128 << 10
    assert found.kinds["flush"].requests > 0
    assert found.furthest_bytes <= MIB
    assert 0 < found.seconds < 60


def test_blkparse_reads_what_is_written(tmp_path: Path) -> None:
    written(tmp_path / "t.blktrace.0", REQUESTS, "blktrace")
    command = ["blkparse", "-i", "t", "-f", "Q %T.%9t %d %S %N\n", "-d", "again.bin"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    lines = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("Q ")]
    assert lines == [
        ["0.000000000", "R", "8", "4096"],
        ["0.000150000", "W", "16", "65536"],
        ["0.000151000", "WFS", "16384", "512"],
        ["0.000400000", "FWS", "0", "0"],
        ["0.000600000", "D", "2048", "1048576"],
        ["0.002000000", "W", "0", "4096"],
    ]
    assert list(open_trace(str(tmp_path / "again.bin")).requests()) == [
        *REQUESTS[:-1],
        REQUESTS[-1]._replace(kind=WRITE),
    ]


# ------------------------------------------------------------------------------------ blktrace's own files


def event(time_ns: int, action: int, sector: int = 0, size: int = 0, *, device: int = 5, order: str = "<") -> bytes:
    numbers = (0x65617407, 1, time_ns, sector, size, action, 1, device, 0, 0, 0)
    return struct.pack(order + "IIQQIIIIIHH", *numbers)


Q, D, N = 1, 7, 1 << 26
R, W, F, FUA, PC = (1 << 16 + bit for bit in (0, 1, 2, 15, 9))


def test_the_files_of_several_processors_are_one_trace(tmp_path: Path) -> None:
    (tmp_path / "sda.blktrace.0").write_bytes(event(100, Q | R, 8, 512) + event(300, Q | W | F | FUA, 16, 1024))
    (tmp_path / "sda.blktrace.1").write_bytes(
        event(50, N) + event(200, Q | W, 8, 512) + event(201, D | W, 8, 512) + event(202, Q | W | PC, 0, 512)
    )
    (tmp_path / "sdb.blktrace.0").write_bytes(event(0, Q | R, 0, 512))
    trace = open_trace(str(tmp_path / "sda.blktrace.1"))
    assert trace.header.device == "0:5"
    assert list(trace.requests()) == [
        TracedRequest(0, READ, 4096, 512),
        TracedRequest(100, WRITE, 4096, 512),
        TracedRequest(200, FLUSH, 0, 0),
        TracedRequest(200, WRITE, 8192, 1024, sync=True),
    ]


@pytest.mark.parametrize("order", ["<", ">"])
def test_without_queued_requests_the_issued_ones_count(tmp_path: Path, order: str) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(event(9, D | R, 8, 512, order=order) + event(10, 8 | R, 8, 512, order=order))
    assert list(open_trace(str(path)).requests()) == [TracedRequest(0, READ, 4096, 512)]


def test_a_trace_of_two_devices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(event(1, Q | R, 0, 512) + event(2, Q | R, 0, 512, device=8 << 20 | 1))
    with pytest.raises(UsageError, match="several devices, 0:5 and 8:1"):
        list(open_trace(str(path)).requests())


# ------------------------------------------------------------------------------------ cut off, damaged, foreign


@pytest.mark.parametrize("kind", ["trace", "iolog", "blktrace"])
def test_every_prefix_is_readable_or_refused_in_one_line(tmp_path: Path, kind: FormatName) -> None:
    whole = tmp_path / "whole"
    requests = list(written(whole, REQUESTS, kind).requests())
    data = whole.read_bytes()
    path = tmp_path / "prefix"
    readable = 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            trace = open_trace(str(path))
            found = list(trace.requests())
        except UsageError as error:
            require_one_line(error)
            continue
        readable += 1
        assert found == requests[: len(found)]
        if kind == "trace":
            assert not trace.end.is_whole
    assert readable > len(data) // 3


def test_blocks_before_the_cut_are_kept(tmp_path: Path) -> None:
    """Also where the end of the file is zeros, as after a power cut."""
    blocks = [[TracedRequest(n, READ, n, 1)] for n in range(5)]
    data = file.encode_header(HEADER) + b"".join(map(file.encode_block, blocks))
    path = tmp_path / "t.trace"
    for tail in (b"", b"\0" * 4096, file.encode_block([TracedRequest(9, READ, 9, 1)])[:-1]):
        path.write_bytes(data + tail)
        trace = open_trace(str(path))
        assert [request.offset for request in trace.requests()] == [0, 1, 2, 3, 4]
        assert not trace.end.is_whole


@given(st.binary(max_size=300), st.sampled_from(["trace", "iolog", "iolog3", "blktrace"]), st.data())
def test_damage_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, kind: FormatName, data: st.DataObject
) -> None:
    out = BytesIO()
    write_trace(trace_of(REQUESTS), out, kind, file_name="disk")
    whole = out.getvalue()
    begin = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.getbasetemp() / "t"
    path.write_bytes(whole[:begin] + noise + whole[begin + len(noise) :])
    try:
        trace = open_trace(str(path))
        for request in trace.requests():
            assert 0 <= request.offset <= request.offset + request.length <= FURTHEST_BYTES
    except UsageError as error:
        require_one_line(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a trace that is known"),
        (b"hello\n", "not a trace that is known"),
        (b"fio version 1 iolog\n", "an iolog of version 1; versions 2 and 3 can be read"),
        (b"fio version 2 iolog\na add\nb read 0 1\n", "several files, 'a' and 'b'"),
        (b"fio version 2 iolog\na read 0 1x\n", "line 2: '1x' is not a number"),
        (b"fio version 2 iolog\na sing 0 1\n", "line 2: 'sing' with 2 numbers is not an action"),
        (b"fio version 2 iolog\na read 5\n", "line 2: 'read' with 1 numbers is not an action"),
        (b"fio version 2 iolog\n" + b"x" * 5000, "line 2: it is too long"),
        (b"cowfstrc\x02\0\0\0\0\0\0\0", "version 2, and this cowfs reads version 1"),
        (b"cowfstrc\x01\0\0\0\x02\0\0\0[]", "its header cannot be read"),
        (file.encode_header(HEADER) + file.encode_end(0) + b"x", "something follows its end"),
        (event(0, Q | R, 0, 512) + b"x" * 48, "byte 48: no event is there"),
    ],
)
def test_what_is_no_trace_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        list(open_trace(str(path)).requests())
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_trace_that_is_not_whole_does_not_become_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    with path.open("wb") as out:
        write_trace(trace_of(REQUESTS, is_whole=False), out, "trace")
    assert not summarize(open_trace(str(path))).is_whole


def test_names_say_the_format() -> None:
    assert [format_of(name) for name in ("a.trace", "a.iolog", "b.log", "a.blktrace", "a.blktrace.12")] == [
        *("trace", "iolog", "iolog", "blktrace", "blktrace")
    ]
    with pytest.raises(UsageError, match="does not show the format"):
        format_of("a.txt")


@pytest.mark.parametrize("name", ["", "a b", "x" * 256, "a\n"])
def test_a_file_name_that_fio_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    trace = trace_of(REQUESTS)
    trace.header = TraceHeader("")
    with pytest.raises(UsageError, match="without blanks"):
        write_trace(trace, BytesIO(), "iolog", file_name=name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        open_trace(os.fspath(tmp_path / "none"))
    assert caught.value.errno == errno.ENOENT
