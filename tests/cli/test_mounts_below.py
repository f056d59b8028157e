"""What a container has mounted in a layer stays there, whatever is asked of the home."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from cowfs.copying.records import End, Node, batches
from cowfs.errors import CowfsError, DeviceBusy, MissingRequirement, UnknownDevice, UsageError
from cowfs.faults.plan import Delay, Rule
from cowfs.home.opened.spec import HomeSpec
from cowfs.home.requests import (
    clock,
    clone,
    comparing,
    counters,
    devices,
    disks,
    ending,
    faults,
    files,
    images,
    layers,
    new_layers,
    power,
    recordings,
    space,
    traces,
)
from cowfs.home.requests.decoding import REQUESTS
from cowfs.home.requests.request import AnyRequest, Attachment, Listing, OpenFile, Request, StreamIn, StreamOut, Upload
from cowfs.home.session import Session, connect
from cowfs.recording.tree_change import TreeChange
from cowfs.steps import pieces_of
from tests.cli.mounted_home import MountedHome
from tests.conftest import Account

pytestmark = pytest.mark.fuse

# As container runtimes do: the layer is bound elsewhere and made the root, other file systems come below it, files are
# bound over files. Nothing else stays mounted there, for that would be other tests' mounts too.
CONTAINER = """
mount --bind "$1" "$2"
cd "$2"
mount -t tmpfs none tmp
mkdir tmp/deeper tmp/old
mount -t tmpfs none tmp/deeper
mount -t proc proc proc
mount -t tmpfs none dev
touch dev/null
mount --bind /dev/null dev/null
mount --bind /usr usr
mount --bind "$3" etc/hostname
mount --bind etc srv
pivot_root . tmp/old
umount -l /tmp/old
echo ready
exec sleep 600
"""
LAYER = """
cd "$0"
mkdir dev etc proc srv tmp usr
touch etc/hostname
for name in bin sbin lib lib64; do ln -s usr/$name $name; done
"""


@contextmanager
def container(account: Account, layer: Path) -> Iterator[Callable[[], str]]:
    """Mounts in a separate mount namespace, and what /proc says of them."""
    root, hostname = account.mkdir("container root"), account.directory / "hostname"
    hostname.write_text("container\n")
    user = [] if account.uid == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    process = account.start(
        [*command, "sh", "-ec", CONTAINER, "sh", layer, root, hostname],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 60)
        if not ready or process.stdout.readline() != "ready\n":
            process.kill()
            said = process.communicate()[1]
            if "Operation not permitted" in said and account.uid:
                pytest.skip("needs user namespaces: sysctl kernel.unprivileged_userns_clone=1")
            pytest.fail(said)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield lambda: Path(f"/proc/{child}/mountinfo").read_text()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def write_archive(file: IO[bytes], **files: str) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, text in files.items():
            header = tarfile.TarInfo(name.replace("_", "/"))
            header.size = len(text)
            archive.addfile(header, io.BytesIO(text.encode()))
    file.seek(0)


def steps(place: Path) -> Iterator[tuple[AnyRequest, type[CowfsError] | None]]:
    """Each request there is, to the layer `used`, to its children and to others; and the error that it must raise.

    Args:
        place: a directory outside the home.
    """
    for about in (devices.Status(), devices.ListDevices(), devices.Table(), devices.TargetStatus(), space.Usage()):
        yield about, None
    yield devices.Inspect("used"), None
    yield devices.SendMessage("reserve_metadata_snap"), None
    yield devices.SendMessage("release_metadata_snap"), None
    yield devices.CopyMetadata(), None
    yield ending.TellEnd(), None
    yield devices.Create("snapshot", "used"), None
    yield devices.OpenNode("snapshot"), MissingRequirement  # after it was tried to let go of it
    yield devices.OpenNode("used"), MissingRequirement
    yield devices.Activate("used"), DeviceBusy
    yield devices.Deactivate("used"), UsageError
    yield space.Resize("used", 128 << 20), DeviceBusy
    yield space.Resize("web", 128 << 20), None
    yield space.ResizePool(2 << 30), None
    yield space.SetNoSpace("queue", 60.0), None
    yield space.Trim("used"), None
    yield files.CopyIn("used", b"etc"), None
    yield files.CopyWithin("used", b"etc", "used", b"srv"), None
    yield files.ListFiles("used", b"proc"), None
    yield files.ReadFile("used", b"etc/hostname"), None
    yield files.ReadFiles("used", [files.WantedFile(b"etc/hostname", 0)]), None
    yield files.CopyOut("used", b""), None
    yield comparing.Changes("used", "lower"), None
    yield comparing.ChangedFiles("used", "lower"), None
    yield counters.Io(), None
    yield counters.Metrics(), None
    yield clone.CloneHome(str(place / "clone")), None
    yield disks.ExportDisk("used"), None
    yield images.ExportArchive("used"), None
    yield images.ExportChain("lower"), None
    yield disks.ImportDisk("disk", 1 << 20), None
    yield images.ImportFiles("files"), None
    yield images.ImportArchive("archive"), None
    yield images.ImportChain(images.Chain([images.ChainDevice("chain", 1 << 20, None, None)], 1 << 16)), None
    yield faults.AddFaults([Rule(effect=Delay(0.001), operations=("read",), name="slow")]), None
    yield faults.ListFaults(), None
    yield faults.ClearFaults(), None
    yield traces.StartTrace("used"), None
    yield traces.EndTrace("used"), None
    yield clock.AdvanceClock(1.0), UsageError  # of a home whose clock is the real one
    yield power.WatchUnsynced("used"), DeviceBusy
    yield power.PowerOff("used"), UsageError
    yield power.PowerOn("used"), UsageError
    yield recordings.StartRecording("used", "origin"), DeviceBusy
    yield recordings.AddMark("used", "text"), UnknownDevice
    yield recordings.StopRecording("used", "origin"), UnknownDevice
    yield recordings.MakeDiskState("state", "lower"), None
    yield recordings.MakeFileState("files-of-state", "lower"), None
    for name in ("disk", "chain"):  # which hold no file system
        yield devices.Remove(name), None
    yield layers.GetLayer("used"), None
    yield layers.PutLayer("used"), None
    yield layers.CreateLayer("child", "used"), None
    yield layers.ApplyLayer("child"), None
    yield layers.GetLayer("child"), None
    for layer, parent in (("used", None), ("used", "lower"), ("child", "used")):
        yield layers.LayerChanges(layer, parent), None
        yield layers.LayerDiff(layer, parent), None
        yield layers.LayerSize(layer, parent), None
    yield layers.PutLayer("child"), None
    yield layers.RemoveLayer("child"), None
    yield new_layers.LayerSeal("used"), None
    yield new_layers.ReadLayerBlocks("used", "lower"), None
    yield new_layers.MakeLayer("made", "used"), None
    yield new_layers.MakeLayerOfBlocks("blocks", "used", 64 << 20, "sha256:0"), UsageError
    yield devices.CreateMany(["one", "two"], "used"), None
    yield devices.Rollback("used", "lower"), DeviceBusy
    yield devices.Rollback("used", "lower", force=True), DeviceBusy
    yield devices.Rollback("web", "base"), None
    yield devices.Rename("used", "other"), DeviceBusy
    yield devices.Rename("web", "shop"), None
    yield devices.Remove("shop"), None
    about_layers: tuple[AnyRequest, ...] = (
        layers.LayerExists("used"),
        layers.ListLayers(),
        layers.LayerMetadata("used"),
        layers.Info(),
    )
    for request in about_layers:
        yield request, None
    yield layers.ApplyLayer("used"), None
    yield layers.PutLayer("used"), None  # of a runtime that has the layer still mounted
    yield devices.OpenNode("used"), MissingRequirement
    yield devices.Activate("used"), DeviceBusy
    yield devices.Rename("used", "other"), DeviceBusy
    yield devices.Rollback("used", "lower"), DeviceBusy
    yield devices.Remove("used"), DeviceBusy
    yield layers.RemoveLayer("used"), None  # marks it
    yield devices.Remove("used", deferred=True), None


def carry_out(session: Session, request: AnyRequest) -> None:
    result: Any
    if isinstance(request, Upload):
        with tempfile.TemporaryFile() as file:
            write_archive(file, etc_motd="hello", new="text")
            result = session.call(msgspec.structs.replace(request, archive=Attachment(file)))
    elif isinstance(request, Listing):
        result = list(session.iterate(request))
    elif isinstance(request, StreamIn):
        result = session.send(request, content_for(request))
    elif isinstance(request, StreamOut):
        result = session.receive(request, lambda _piece: None)
    else:
        assert isinstance(request, Request)
        result = session.call(request)
    if isinstance(result, OpenFile):
        os.close(result.fd)


def content_for(request: StreamIn[Any]) -> list[bytes]:
    match request:
        case disks.ImportDisk():
            return [bytes(disks.OFFSET_BYTES), b"data"]
        case images.ImportChain():
            return [images.CHANGE.pack(0, True, 0, 4) + b"data"]
        case recordings.MakeDiskState():
            return [msgspec.msgpack.encode([recordings.Write(1 << 20, 4, b"data")])]
        case recordings.MakeFileState():
            return [msgspec.msgpack.encode(TreeChange([], [], [], []))]
        case new_layers.MakeLayerOfBlocks():
            return []
        case images.ImportFiles():
            return list(map(bytes, pieces_of(batches([Node(b".", 0o040755, 0, 0, 0, 0), End()]))))
    return list(map(bytes, pieces_of(batches([Node(b"motd", 0o100644, 0, 0, 0, 0, 4, b"new\n")]))))


def test_every_request_leaves_the_mounts_in_a_layer_alone(mounted: MountedHome) -> None:
    outside = mounted.account.directory
    assert {type(request) for request, _ in steps(outside)} == set(REQUESTS)
    mounted.run("mount", mounted.target)
    for words in (("create", "lower"), ("create", "used", "lower"), ("get", "used")):
        directory = Path(mounted.run("layer", *words).stdout.strip())
    mounted.account.run(["sh", "-ec", LAYER, directory])
    with container(mounted.account, directory) as mount_table, connect(HomeSpec(mounted.home)) as session:
        before = mount_table()
        assert len(before.splitlines()) == 9
        for request, error in steps(outside):
            if error is None:
                carry_out(session, request)
            else:
                with pytest.raises(error):
                    carry_out(session, request)
            mounted.account.run(["sh", "-c", 'ls -l "$0"; ls -lR "$0/used" >/dev/null; :', mounted.target])
            assert mount_table() == before, request
    mounted.wait_until(lambda: "used" not in mounted.run("list").stdout)
