"""`cowfs bench`: what it prints and writes, as root and as an ordinary user; what it refuses; that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cowfs.mounts.mountinfo import mounts
from tests.conftest import Account

JOB = """[global]
filename=${DISK}
size=1m
ioengine=psync
[first]
rw=write
bs=64k
[second]
stonewall
rw=read
bs=4k
"""
WAIT_SECONDS = 60
JOBS = {
    "place.fio": "[job]\nfilename=/dev/sda\n",
    "beside.fio": "[job]\nfilename=../../file\nsize=4k\nrw=write\n",
    "variable.fio": "[job]\ndirectory=${HOME}\nsize=4k\nrw=write\n",
    "both.fio": "[a]\nfilename=${DISK}\n[b]\ndirectory=${DIR}\n",
    "none-in-it.fio": "[global]\nrw=write\n",
    "fly.fio": "[job]\nrw=fly\n",
    "read.fio": "[job]\nrw=read\nsize=4k\n",
}


def bench(account: Account, *words: str, status: int = 0) -> str:
    place = [] if words[0] in ("compare", "report") else ["--directory", "."]
    found = account.run(["cowfs", "--quiet", "bench", *words, *place], check=False)
    assert found.returncode == status, found.stderr
    assert not list(account.directory.glob("cowfs-bench-*"))
    return found.stdout if status == 0 else found.stderr


@pytest.mark.fuse
def test_questions_of_several_engines_with_all_reports(account: Account, needs_fuse: None) -> None:
    files = ["--json", "new.json", "--html", "new.html", "--csv", "new.csv"]
    said = bench(account, "first-write", "disk", "--over", "emulated,plain", "--quick", "--rounds", "2", *files)
    assert "first write of 4 KiB and fdatasync [1/s]" in said
    assert "without plain: it has no snapshots" in said
    result = json.loads((account.directory / "new.json").read_text())
    assert [note["name"] for note in result["contenders"]] == ["emulated", "plain"]
    lines = {line["name"]: line for line in result["questions"][0]["lines"]}
    (first, second) = lines["first write of 4 KiB and fdatasync"]["samples"]["emulated"]
    for sample in (first, second):  # four writes, each in a shared block of 64 KiB of its own
        assert sample["requests"] == 4
        assert sample["counters"]["requests"]["copied_blocks"] == 4
        assert sample["counters"]["requests"]["copied_bytes"] == 4 * (64 << 10)
        assert sample["counters"]["requests"].get("provisioned_blocks") == 0
        assert sample["engine_written_bytes"] >= 4 * (64 << 10)
        assert sample["peak_memory_bytes"] > 1 << 20
    whole = lines["first write of 256 KiB and fdatasync"]["samples"]["emulated"][0]
    assert whole["counters"]["requests"]["copied_bytes"] == 0  # nothing of a block is left to copy
    page = (account.directory / "new.html").read_text()
    assert "What does the first write after a snapshot cost?" in page
    assert page.count("<svg") > 4
    account.run(["touch", "new.other"])
    assert len({(account.directory / f"new.{end}").stat().st_mode for end in ("json", "html", "csv", "other")}) == 1
    assert (account.directory / "new.csv").read_text().count("\nfirst-write,first write of 4 KiB") == 2
    compared = bench(account, "compare", "new.json", "new.json", "--judge-loaded")
    assert "worse" not in compared
    (account.directory / "loaded.json").write_text(json.dumps(result | {"others_processors": 1.0}))
    unjudged = account.run(["cowfs", "bench", "compare", "new.json", "loaded.json"], check=False)
    assert unjudged.returncode == 1
    assert "nothing was judged, as others used the machine" in unjudged.stderr
    assert "first write of 4 KiB" in bench(account, "report", "new.json")
    assert "blocks copied" in bench(account, "report", "new.json", "--details")
    result["questions"][0] |= {"lines": [], "failed": [{"name": "emulated", "problem": "its disk is full"}]}
    (account.directory / "failed.json").write_text(json.dumps(result))
    failed = account.run(["cowfs", "bench", "compare", "new.json", "failed.json", "--judge-loaded"], check=False)
    assert failed.returncode == 1
    assert "failed in the new result: first-write / emulated: its disk is full" in failed.stdout


@pytest.mark.fuse
def test_a_job_of_fio_on_each_engine_is_kept_whole(account: Account, needs_fuse: None) -> None:
    (account.directory / "job.fio").write_text(JOB)
    bench(account, "job.fio", "--over", "emulated,plain", "--rounds", "1", "--size", "256M", "--json", "new.json")
    (question,) = json.loads((account.directory / "new.json").read_text())["questions"]
    lines = {line["name"]: line["samples"] for line in question["lines"]}
    assert set(lines) == {"all jobs", "first: write", "second: read"}
    for contender in ("emulated", "plain"):
        (whole,) = lines["all jobs"][contender]
        assert [job["jobname"] for job in whole["fio"]["jobs"]] == ["first", "second"]
        assert whole["written_bytes"] == whole["read_bytes"] == 1 << 20
        assert lines["second: read"][contender][0]["requests"] == 256
        assert lines["second: read"][contender][0]["latency_us"]["p50"] > 0
    assert lines["all jobs"]["emulated"][0]["counters"]["requests"]["written_bytes"] >= 1 << 20


def test_a_trace_alone_is_a_question(account: Account) -> None:
    log = "fio version 2 iolog\n/disk add\n/disk open\n/disk write 0 4096\n/disk close\n"
    (account.directory / "one.iolog").write_text(log)
    (account.directory / "one.iolog").chmod(0o644)
    said = account.run_script("cowfs bench one.iolog --directory . --over plain --rounds 1 --size 1M")
    assert "plain" in said
    assert "failed" not in said


def test_a_command_that_fails_is_shown_and_others_go_on(account: Account) -> None:
    (account.directory / "work").write_text('#!/bin/sh\necho "working in $1"\ntouch "$1/file"\nexit 3\n')
    (account.directory / "work").chmod(0o755)
    """What the command said stands behind the table of its question."""
    said = account.run_script("cowfs bench --directory . --command './work {dir}' --over plain 2>&1 || echo status $?")
    begin = said.index("command: How long does")
    table, _, rest = said[begin:].partition("\nplain: working in /")
    assert "plain failed: './work /" in table
    assert "ended with status 3 on plain: working in /" in table
    assert rest.endswith("status 1\n")
    assert not list(account.directory.glob("cowfs-bench-*"))


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["foo"], 2, "there is no question 'foo'; there are first-write,"),
        (["--over", "foo"], 2, "there is no engine 'foo'; there are emulated,"),
        (["--command", "true"], 2, "has to name one of {dir}, {disk} and {home}: where it works; it names none"),
        (["--command", "a {dir} {disk}"], 2, "it names {dir} and {disk}"),
        (["--command", "a ' {dir}"], 2, "cannot be split into words"),
        (["--command", "nosuch {dir}"], 2, "--command: there is no program 'nosuch'"),
        (["disk", "--json", "none/new.json"], 1, "none/new.json cannot be written: No such file or directory"),
        (["none.fio"], 2, "the job file none.fio cannot be read: No such file or directory"),
        (["place.fio"], 2, "has 'filename=/dev/sda', which is the same place for every engine"),
        (["beside.fio"], 2, "has 'filename=../../file', which is the same place for every engine, or may be"),
        (["variable.fio"], 2, "has 'directory=${HOME}', which is the same place for every engine, or may be"),
        (["both.fio"], 2, "names both ${DISK} and ${DIR}; a job works in one of them"),
        (["none-in-it.fio"], 2, "the job file none-in-it.fio has no job"),
        (["fly.fio"], 2, "fio refuses the job file fly.fio: fio: failed parsing rw=fly"),
        (["fly.fio", "sub/fly.fio"], 2, "fio refuses the job file"),
        (["read.fio", "sub/read.fio"], 2, "two files are called 'read.fio', and results go by names"),
        (["read.fio", "--json", "read.fio"], 2, "read.fio cannot be written: it is read by the same command"),
        (
            ["disk", "--json", "a", "--csv", "sub/../a"],
            2,
            "sub/../a cannot be written: it is written by the same command",
        ),
        (["disk", "--csv", "sub"], 2, "/sub is a directory; name a file"),
        (["compare"], 2, "give two results, as in"),
        (["compare", "a", "b", "c"], 2, "give two results, as in"),
        (["compare", "none.json", "none.json"], 1, "none.json cannot be read: No such file or directory"),
        (["compare", "place.fio", "place.fio"], 2, "place.fio is not a result of 'cowfs bench --json'"),
        (["compare", "a", "b", "--threshold", "x"], 2, "--threshold x is not a percentage"),
        (["compare", "a", "b", "--json", "c"], 2, "--json is not for 'cowfs bench compare'; leave it out"),
        (["report", "a", "--over", "plain"], 2, "--over is not for 'cowfs bench report'; leave it out"),
        (["--list", "--quick"], 2, "--quick is not for 'cowfs bench --list'; leave it out"),
        (
            ["disk", "--threshold", "5%"],
            2,
            "--threshold is not for a run: it is for 'cowfs bench compare'; leave it out",
        ),
        (["report"], 2, "give one result, as in"),
        (["disk", "--directory", "none"], 2, "no directory can be made in it: No such file or directory"),
        (["disk", "--over", "plain", "--thin-pool", "pool"], 2, "--thin-pool pool is for the engine dmthin"),
        (["--quick", "--full"], 2, "--quick has small sizes and --full large ones; leave one of them out"),
        (["disk", "--over", "bare-fuse:1M"], 2, "has no block size to choose"),
    ],
)
def test_bad_input_is_one_line(account: Account, words: list[str], status: int, message: str) -> None:
    for name, job in JOBS.items():
        (account.directory / name).write_text(job)
    sub = account.mkdir("sub")
    for name in ("fly.fio", "read.fio"):
        (sub / name).write_text(JOBS[name])
    found = account.run(["cowfs", "bench", *words], check=False)
    assert found.returncode == status, found.stderr
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert not found.stdout


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("rw=write\nsize=4k\ndirectory=${DIR}/none", "fio ended with status 1 for job.fio on plain: fio: /"),
        ("rw=write\nsize=8m\nfilename=${DISK}", "a job of job.fio is larger than the disk; give a larger --size"),
    ],
)
def test_a_job_that_fails_on_an_engine_is_one_line_of_the_question(account: Account, job: str, message: str) -> None:
    (account.directory / "job.fio").write_text(f"[job]\n{job}\n")
    found = account.run(["cowfs", "bench", "job.fio", "--over", "plain", "--rounds", "1", "--size", "4M"], check=False)
    assert found.returncode == 1
    assert f"plain failed: {message}" in found.stdout
    assert found.stderr.splitlines()[-1].startswith(f"cowfs: the engine 'plain' failed in 'job.fio': {message}")


@pytest.mark.fuse
def test_a_disk_behind_fuse_is_too_small_in_the_same_words(account: Account, needs_fuse: None) -> None:
    """The raw mount does not let fio make the file anew."""
    (account.directory / "job.fio").write_text("[job]\nrw=write\nsize=1g\nfilename=${DISK}\n")
    words = ["bench", "job.fio", "--over", "emulated", "--rounds", "1", "--size", "4M"]
    found = account.run(["cowfs", *words], check=False)
    assert "emulated failed: a job of job.fio is larger than the disk; give a larger --size" in found.stdout


def test_a_question_that_is_named_twice_is_asked_once(account: Account) -> None:
    said = bench(account, "disk", "disk", "--over", "plain", "--quick", "--rounds", "1")
    assert said.count("disk: How many requests") == 1


@pytest.fixture
def working(account: Account, needs_fuse: None) -> subprocess.Popen[str]:
    """A run in the middle of a command that works on a mount; other engines are set up beside it."""
    (account.directory / "work").write_text(
        '#!/bin/sh\ntouch "$1/file"\necho $$ > pid\nmv pid started\nexec sleep 60\n'
    )
    (account.directory / "work").chmod(0o755)
    engines = "emulated,fuse2fs,ext4,qcow2" if account.uid == 0 else "emulated,fuse2fs"
    words = ["--command", "./work {dir}", "--over", engines]
    process = account.start(["cowfs", "bench", "--directory", ".", *words])
    wait_until(lambda: (account.directory / "started").exists() or process.poll() is not None)
    assert process.poll() is None
    return process


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def left(account: Account) -> list[Path | str]:
    mounted = [mount.target for mount in mounts() if Path(mount.target).is_relative_to(account.directory)]
    return [*account.directory.glob("cowfs-bench-*"), *mounted]


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_everything_down(
    account: Account, working: subprocess.Popen[str], number: signal.Signals
) -> None:
    os.kill(working.pid, number)
    assert working.wait(WAIT_SECONDS) == 128 + number
    assert not left(account)


@pytest.mark.fuse
def test_after_kill_9_nothing_is_left_either(account: Account, working: subprocess.Popen[str]) -> None:
    working.kill()
    working.wait()
    os.kill(int((account.directory / "started").read_text()), signal.SIGKILL)  # the command is the user's own
    wait_until(lambda: not left(account))


def test_after_kill_9_in_a_job_of_fio_nothing_is_left(account: Account) -> None:
    """Neither fio, which is ended, nor its files, wherever temporary files are."""
    started = account.directory / "started"
    job = f"[job]\nrw=read\nsize=64k\ntime_based=1\nruntime=60\nioengine=psync\nexec_prerun=touch {started}\n"
    (account.directory / "job.fio").write_text(job)
    account.mkdir("temporary")
    words = ["cowfs", "bench", "job.fio", "--directory", ".", "--over", "plain", "--rounds", "1", "--size", "1M"]
    process = account.start(["env", "TMPDIR=temporary", *words])
    wait_until(lambda: started.exists() or process.poll() is not None)
    assert process.poll() is None
    process.kill()
    process.wait()
    wait_until(lambda: not left(account) and not list((account.directory / "temporary").iterdir()))
    assert not processes_naming(account.directory)


def processes_naming(directory: Path) -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes()
            if os.fsencode(directory) in words and b"fio" in words:
                found.append(words)
    return found
