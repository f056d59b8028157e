"""The whole command line on one backend: python -m tests.uml.guest_command_line BACKEND DIRECTORY

Prints a JSON object for each command: its words, exit status, output and errors. What differs from run to run (paths,
numbers of processes and inodes, UUIDs) is written the same way each time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cowfs.cli.app import run
from tests.kit.standby import fork_servers_from_here

_SMALL: Final = ("--data-size", "128M", "--metadata-size", "4M", "--base-size", "32M")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PREFIX: Final = re.compile(r"docker-\d+:\d+-\d+")
# Left out: figures of the host's disk; whether discards reach the file, which the loop device decides; where in the
# metadata a snapshot of it is, which is each backend's own affair; and loop devices, which only the kernel's pool has.
_LEFT_OUT: Final = (
    r"(?m)^(Data|Metadata) (loop )?file: [^\n]*\n",
    r'(?m)^ *"(meta)?data_(loop_)?file": [^\n]*\n',
    r'(?<="data_file_allocated_bytes": )\d+',
    r'(?<="host_free_bytes": )\d+',
    r'(?<="holder_pid": )\d+',
    r'(?<="metadata_snapshot_block": )\d+',
    r"(?<=at block )\d+",
    r"(?<=Disk free )[^\n]*",
    r"(?<=Data file )[^\n]*",
    r"(?<=process )\d+",
    r"(?<=since )[\d: -]+",
    r'(?<="since": )[\d.]+',
    r"no_(?=discard_passdown)",
)


class Recorder:
    """Runs commands and reports their outcome."""

    def __init__(self, backend: str, directory: Path) -> None:
        self.backend = backend
        self.directory = directory
        self.home = directory / "home"
        self.point = directory / "point"
        self.options: tuple[str, ...] = ()

    def __call__(self, *words: object, stdin: str | None = None) -> str:
        out, err = io.TextIOWrapper(io.BytesIO(), write_through=True), io.StringIO()
        source = io.TextIOWrapper(io.BytesIO((stdin or "").encode()))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _stdin(source):
            status = run(["--home", str(self.home), "--backend", self.backend, *self.options, *map(str, words)])
        text = out.buffer.getvalue().decode()
        self.tell(" ".join(map(str, words)), status, text, err.getvalue())
        return text

    def tell(self, words: str, status: int, out: str, err: str = "") -> None:
        record: dict[str, str | int] = {"words": words, "status": status, "out": out, "err": err}
        print(json.dumps({key: self._plain(value) for key, value in record.items()}), flush=True)

    def _plain(self, value: str | int) -> str | int:
        if isinstance(value, int):
            return value
        value = value.replace(str(self.directory), "DIR").replace(self.backend, "BACKEND")
        for pattern in _LEFT_OUT:
            value = re.sub(pattern, "", value)
        return _PREFIX.sub("PREFIX", _UUID.sub("UUID", value))

    def file(self, name: str, content: str) -> None:
        with (self.point / name).open("w") as file:
            file.write(content)
            os.fsync(file.fileno())  # which of two snapshots has it must not depend on the time

    def read(self, name: str) -> None:
        self.tell(f"file {name}", 0, (self.point / name).read_text())


@contextlib.contextmanager
def _stdin(source: io.TextIOWrapper) -> Iterator[None]:
    before, sys.stdin = sys.stdin, source
    try:
        yield
    finally:
        sys.stdin = before


def record_all(cowfs: Recorder) -> None:
    """Every command, rightly and wrongly used, on a home that is free and one that is mounted."""
    cowfs.point.mkdir()
    making(cowfs)
    looking(cowfs)
    speaking_to_the_pool(cowfs)
    mounting(cowfs)
    changing_sizes(cowfs)
    replacing_metadata(cowfs)
    layers(cowfs)
    files(cowfs)
    removing(cowfs)
    looking(cowfs)


def making(cowfs: Recorder) -> None:
    cowfs("list")
    cowfs("init", "--block-size", "1000")
    cowfs("init", *_SMALL)
    cowfs("init", *_SMALL)
    cowfs("create", "web")
    cowfs("create", "web")
    cowfs("create", "a/b")
    cowfs("create", "other", "--parent", "nix")
    cowfs("create", "small", "--size", "1M")
    cowfs("create", "large", "--size", "48M", "--parent", "web")
    cowfs("snapshot", "web", "copy")
    cowfs("snapshot", "nix", "copy")
    cowfs("--json", "snapshot", "copy", "copy of copy")


def looking(cowfs: Recorder) -> None:
    for words in (["list"], ["list", "--tree"], ["status"], ["usage"], ["table"], ["dmstatus"], ["check"], ["info"]):
        cowfs(*words)
        cowfs("--json", *words)
    for name in ("base", "web", "nix"):
        cowfs("inspect", name)
        cowfs("--json", "inspect", name)
    cowfs("dump")
    cowfs("--json", "dump")
    cowfs("delta", "base", "web")
    cowfs("delta", "web", "nix")


def speaking_to_the_pool(cowfs: Recorder) -> None:
    for text in (
        *("create_thin 77", "create_thin 77", "create_snap 78 77", "create_snap 79 1000", "delete 78", "delete 78"),
        *("create_thin 16777216", "nonsense", "create_thin", "set_transaction_id 0 1", "release_metadata_snap"),
        *("reserve_metadata_snap", "reserve_metadata_snap"),
    ):
        cowfs("message", text)
    cowfs("status")
    cowfs("message", "release_metadata_snap")
    cowfs("--json", "message", "delete", "77")


def mounting(cowfs: Recorder) -> None:
    other = cowfs.directory / "other"
    other.mkdir()
    cowfs("mount", "nix", cowfs.point)
    cowfs("mount", "web", cowfs.directory / "nowhere")
    cowfs("mount", "web", cowfs.point)
    cowfs.file("file", "one\n")
    cowfs("snapshot", "web", "monday")
    cowfs.file("file", "two\n")
    cowfs("status")
    cowfs("--json", "status")
    cowfs("inspect", "web")
    for words in (
        *(["mount", "copy", other], ["mount", "copy", cowfs.point], ["remove", "web"], ["check", "--repair"]),
        *(["resize", "web", "64M"], ["message", "delete", "2"]),
    ):
        cowfs(*words)
    cowfs("remove", "copy of copy")
    cowfs("create", "while mounted")
    cowfs("check")
    cowfs("umount", cowfs.point)
    cowfs("umount", cowfs.point)
    cowfs("mount", "monday", cowfs.point, "--read-only")
    cowfs.read("file")
    with contextlib.suppress(OSError):
        cowfs.file("file", "three\n")
        raise AssertionError("a read-only mount was written")
    cowfs("umount", cowfs.point)
    cowfs("mount", "--raw", "web", cowfs.point)
    cowfs.tell("image", 0, f"{os.listdir(cowfs.point)} {os.path.getsize(cowfs.point / 'web')}")
    cowfs("umount", cowfs.point)
    cowfs("mount", cowfs.point, "--read-only")
    cowfs.tell("whole home", 0, " ".join(sorted(os.listdir(cowfs.point))))
    cowfs.read("web/file")
    cowfs.read("monday/file")
    cowfs("list")
    cowfs("umount", cowfs.point)
    cowfs("mount", "web", cowfs.point, "--repair")
    cowfs.read("file")
    cowfs("umount", cowfs.point)


def changing_sizes(cowfs: Recorder) -> None:
    cowfs("resize", "copy", "40M")
    cowfs("resize", "copy", "1M")
    cowfs("inspect", "copy")
    cowfs("trim", "web")
    cowfs("pool", "resize", "--data-size", "160M", "--metadata-size", "8M")
    cowfs("pool", "resize", "--data-size", "64M")
    cowfs("status")


def replacing_metadata(cowfs: Recorder) -> None:
    xml = cowfs("dump")
    cowfs("check", "--repair")
    (cowfs.directory / "xml").write_text(xml)
    cowfs("restore", cowfs.directory / "xml")
    (cowfs.directory / "xml").write_text(xml.replace("nr_mapped", "x") + "rubbish")
    cowfs("restore", cowfs.directory / "xml")
    cowfs("dump")


def layers(cowfs: Recorder) -> None:
    """By FUSE on both; what the kernel mounts is read through a snapshot, which the pool's time counts."""
    cowfs.options = ("--storage-opt", "cowfs.mount=fuse")
    cowfs("layer", "create", "one")
    cowfs("layer", "create", "two", "one")
    cowfs("layer", "create", "two", "one")
    cowfs("layer", "list")
    cowfs("layer", "exists", "two")
    cowfs("layer", "exists", "three")
    cowfs("layer", "changes", "two", "one")
    cowfs("layer", "metadata", "two")
    cowfs("layer", "remove", "two")
    cowfs.options = ()


def files(cowfs: Recorder) -> None:
    """By FUSE on both, as above; what inode numbers and times are does not depend on the backend."""
    cowfs.options = ("--storage-opt", "cowfs.mount=fuse")
    source = cowfs.directory / "source"
    source.mkdir()
    (source / "file").write_text("one\ntwo\n")
    (source / "link").symlink_to("file")
    for path in (source / "file", source):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    cowfs("create", "files")
    cowfs("cp", source, "files:")
    cowfs("cp", "-r", source, "files:")
    cowfs("ls", "files:")
    cowfs("cat", "files:/source/link")
    cowfs("cat", "files:/nope")
    cowfs("snapshot", "files", "files-1")
    (source / "file").write_text("one\n2\n")
    cowfs("cp", source / "file", "files:/source/file")
    cowfs("cp", "-r", "files-1:/source", "files:/again")
    cowfs("cp", "-r", source, "base:")
    cowfs("changes", "files", "files-1")
    cowfs("changes", "files-1")
    cowfs("diff", "files-1", "files", "/source")
    cowfs("cp", "-r", "files:/source", cowfs.directory / "out")
    cowfs.tell("what came out", 0, (cowfs.directory / "out" / "link").read_text())
    cowfs("mount", "files", cowfs.point)
    cowfs("cp", source / "link", "files:/new")
    cowfs.tell("what is shown", 0, os.readlink(cowfs.point / "new"))
    cowfs("cat", "files:/source/file")
    cowfs("changes", "files", "files-1")
    cowfs("umount", cowfs.point)
    cowfs("remove", "files", "files-1")
    cowfs.options = ()


def removing(cowfs: Recorder) -> None:
    cowfs("remove", "monday", "nix", "while mounted")
    cowfs("remove", "base")
    cowfs("remove", "--deferred", "large")


if __name__ == "__main__":
    fork_servers_from_here()
    record_all(Recorder(sys.argv[1], Path(sys.argv[2])))
