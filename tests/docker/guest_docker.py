"""What a user of Docker does, on the storage driver that is named: run inside User-Mode Linux.

    guest_docker.py {devicemapper|cowfs|xfs} DIRECTORY      prints what came out of each step as JSON: [name, value]

The same steps on two drivers have to come to the same trees and the same differences. `xfs` is the devicemapper driver
on devices with xfs, and what is read of its home without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import struct
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cowfs.cli.app import run
from tests.kit.docker_engine import BUSYBOX, DockerEngine, storage_driver
from tests.kit.docker_registry import docker_registry

SIZES = ["dm.loopdatasize=2G", "dm.loopmetadatasize=64M", "dm.basesize=1G"]
OPTIONS = [*SIZES, "dm.fs=ext4"]
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
DOCKERFILE = """\
FROM image
COPY added /added
RUN rm -r /etc/gone /var/log && echo changed > /etc/changed && ln /etc/changed /etc/hard && chmod 4711 /bin/tool
RUN mkdir /var/log && mv /usr/share/moved /usr/share/there && rm /etc/hard && head -c 3000000 /dev/zero > /zeros
"""


def make_image() -> bytes:
    """A root file system with one of each kind of file, as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes = b"", **fields: Any) -> None:
            item = tarfile.TarInfo(name)
            item.mtime, item.mode, item.size = 1_500_000_000, 0o644, len(data)
            for field, value in fields.items():
                setattr(item, field, value)
            tar.addfile(item, io.BytesIO(data))

        for name in ("bin", "etc", "etc/gone", "var", "var/log", "usr", "usr/share", "usr/share/moved", "tmp"):
            add(name, type=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        add("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
        for name in ("sh", "rm", "ln", "mv", "mkdir", "chmod", "head", "echo"):
            add(f"bin/{name}", type=tarfile.SYMTYPE, linkname="busybox", mode=0o777)
        add("bin/tool", b"#!/bin/sh\n", mode=0o755, uid=7, gid=9)
        # Docker gives the owner and mode of a link's entry to what it links to.
        add("bin/hard", type=tarfile.LNKTYPE, linkname="bin/tool", mode=0o755, uid=7, gid=9)
        add("etc/changed", b"as it was\n")
        add("usr/share/moved/file", b"x" * 100_000)
        add("usr/share/" + "n" * 200, b"a long name")
        add("usr/share/späte Grüße", b"no ASCII")
        add("var/fifo", type=tarfile.FIFOTYPE)
        add("var/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        for number in range(300):
            add(f"etc/gone/{number}", b"%d" % number * number)
    return archive.getvalue()


def make_reserved() -> bytes:
    """A root file system as cowfs writes one in which a file is named as the whiteout of another."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, true_path in (("kept", ""), (".cowfs-name.wh.kept", ".wh.kept")):
            item = tarfile.TarInfo(name)
            item.mtime, item.pax_headers = 1_500_000_000, {"COWFS.path": true_path} if true_path else {}
            tar.addfile(item)
    return archive.getvalue()


def commit_reserved(engine: DockerEngine, directory: Path) -> dict[str, list[object]]:
    """What is in a container of an image that was committed with a file named as the whiteout of another."""
    (directory / ".wh.changed").write_text("no whiteout\n")
    engine.create("reserved", "image")
    engine.copy_in(directory / ".wh.changed", "reserved", "/etc")
    engine.commit("reserved", "reserved")
    engine.save("reserved")
    engine.create("again", "reserved")
    found = listing(engine.export("again"))
    engine.remove_containers("reserved", "again")
    engine.remove_images("reserved")
    return {name: found[name] for name in found if "changed" in name}


def listing(archive: bytes) -> dict[str, list[object]]:
    """What a tar archive holds, by path, without the times of what the steps themselves made."""
    found: dict[str, list[object]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for item in tar:
            if os.path.basename(item.name).startswith(".wh."):
                found[item.name] = ["deleted"]
                continue
            file = tar.extractfile(item) if item.isreg() else None
            digest = hashlib.sha256(file.read()).hexdigest() if file else ""
            mtime = item.mtime if item.mtime == 1_500_000_000 else "new"
            fields = [item.type.decode(), oct(item.mode & 0o7777), item.uid, item.gid, item.size, item.linkname, digest]
            found[item.name] = [*fields, [item.devmajor, item.devminor], mtime]
    return found


def layers(archive: bytes) -> list[dict[str, list[object]]]:
    """The listings of an image's layers, bottom first, as `docker save` writes them."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        (image,) = json.loads(member("manifest.json"))
        return [listing(member(name)) for name in image["Layers"]]


def cowfs(*words: str | Path) -> bytes:
    """What a command of ours prints. It runs in this process, as the start of one takes a second in a guest."""
    with tempfile.TemporaryFile() as file:
        out, err = io.TextIOWrapper(file), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run([str(word) for word in words])
        out.flush()
        assert (status, err.getvalue()) == (0, ""), (words, status, err.getvalue())
        file.seek(0)
        return file.read()


def save_offline(directory: Path) -> None:
    """What of the daemon's directory is read while no daemon runs."""
    home = directory / "root"
    for name in ("images", "ps"):
        (directory / f"{name}.json").write_bytes(cowfs("--home", home, "--json", "docker", name))
    cowfs("--home", home, "docker", "save", "built", "image", "-o", directory / "saved.tar")
    (directory / "one.tar").write_bytes(cowfs("--home", home, "docker", "export", "one"))
    (directory / "changes").write_bytes(cowfs("--home", home, "changes", "one", "built"))


def load_saved(engine: DockerEngine, directory: Path) -> dict[str, object]:
    """What was saved, loaded by a daemon that has nothing of it any more."""
    images = json.loads((directory / "images.json").read_text())
    engine.load((directory / "saved.tar").read_bytes())
    loaded = engine.images()
    engine.import_image((directory / "one.tar").read_bytes(), "one")
    return {
        "ids read": {tag: f"sha256:{image['id']}" for image in images for tag in image["tags"]},
        "ids loaded": loaded,
        "layers": layers(engine.save("built")),
        "containers": [row["name"] for row in json.loads((directory / "ps.json").read_text())],
        "export": listing((directory / "one.tar").read_bytes()),
        "run": engine.run("built", "/bin/busybox", "cat", "/etc/changed"),
    }


def through_a_registry(engine: DockerEngine, directory: Path) -> dict[str, object]:
    """An image that was saved offline becomes layers of a home, with one more, and goes to Docker through a registry.

    And back: what Docker pushes is what is pulled.
    """
    home = directory / "layers"
    (directory / "registry").mkdir()
    bring_loopback_up()
    with docker_registry(directory / "registry") as host:
        cowfs("--home", home, "init", "--data-size", "1G", "--metadata-size", "16M", "--base-size", "256M")
        saved = directory / "saved.tar"
        brought = json.loads(
            cowfs("--home", home, "--json", "layer", "import", saved, "--image", "built", "--name", "mine")
        )
        same = json.loads(cowfs("--home", home, "--json", "layer", "push", "mine", f"{host}/built:1"))
        (directory / "greeting").write_text("made here\n")
        cowfs("--home", home, "cp", directory / "greeting", "mine:/etc/greeting")
        cowfs("--home", home, "layer", "push", "mine", f"{host}/mine:1")
        for name in ("built", "mine"):
            engine.pull(f"{host}/{name}", "1")
        pulled = engine.images()[f"{host}/built:1"]
        said = engine.run(f"{host}/mine:1", "/bin/busybox", "cat", "/etc/greeting")
        engine.tag("built", f"{host}/docker", "1")
        engine.push(f"{host}/docker", "1")
        back = json.loads(cowfs("--home", home, "--json", "layer", "pull", f"{host}/docker:1"))
        engine.remove_images(f"{host}/built:1", f"{host}/mine:1", f"{host}/docker:1")
    images = json.loads((directory / "images.json").read_text())
    return {
        "run": said,
        "id": next(f"sha256:{image['id']}" for image in images if "built:latest" in image["tags"]),
        "ids": [brought[0]["image_id"], same["image_id"], pulled, back["image_id"]],
        "states": sorted({layer["state"] for layer in back["layers"]}),
        "check": json.loads(cowfs("--home", home, "--json", "check"))["clean"],
    }


def bring_loopback_up() -> None:
    request = struct.Struct("16sH14x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        flags = request.unpack(fcntl.ioctl(asked, SIOCGIFFLAGS, request.pack(b"lo", 0)))[1]
        fcntl.ioctl(asked, SIOCSIFFLAGS, request.pack(b"lo", flags | IFF_UP))


def rescue_from_xfs(directory: Path, image: bytes, context: Path) -> Iterator[tuple[str, object]]:
    """A home whose devices have xfs: what is in it while Docker has it, and what is read without it."""
    options = [*SIZES, "dm.fs=xfs"]
    with storage_driver("devicemapper", directory, options) as arguments, DockerEngine(directory, arguments) as engine:
        status = dict(engine.info()["DriverStatus"])
        engine.import_image(image, "image")
        engine.build(context, "built")
        engine.create("one", "built")
        engine.copy_in(context / "added", "one", "/usr/share/there")
        yield (
            "docker",
            {
                "filesystem": status["Backing Filesystem"],
                "layers": layers(engine.save("built")),
                "export": listing(engine.export("one")),
                "diff": engine.changes("one"),
            },
        )
    save_offline(directory)
    home = directory / "root"
    cowfs("--home", home, "docker", "cp", "one:/usr/share/there/added/deep/file", directory / "copied")
    yield (
        "without",
        {
            "layer changes": sorted(cowfs("--home", home, "layer", "changes", "one", "built").decode().splitlines()),
            "layer diff": listing(cowfs("--home", home, "layer", "diff", "one", "built")),
            "copied": (directory / "copied").read_text(),
            "du": [row["name"] for row in json.loads(cowfs("--home", home, "--json", "docker", "du"))["rows"]],
            "mount": shown_in_a_mount(home, directory / "mnt"),
        },
    )
    with storage_driver("devicemapper", directory, options) as arguments, DockerEngine(directory, arguments) as engine:
        engine.remove_containers("one")
        engine.remove_images("built", "image")
        yield "loaded", load_saved(engine, directory)


def shown_in_a_mount(home: Path, mount_point: Path) -> dict[str, object]:
    """What a mount of the whole home shows of a container: for reading."""
    mount_point.mkdir()
    inspected = json.loads(cowfs("--home", home, "--json", "docker", "inspect", "one"))
    cowfs("--home", home, "mount", "--read-only", mount_point)
    try:
        root = mount_point / inspected["device"] / "rootfs"
        return {"names": sorted(os.listdir(root)), "changed": (root / "etc" / "changed").read_text()}
    finally:
        cowfs("umount", mount_point)


def tell(name: str, value: object) -> None:
    print(json.dumps([name, value]), flush=True)


def main(driver: str, directory: Path) -> None:
    directory.mkdir(parents=True)
    context = directory / "context"
    (context / "added" / "deep").mkdir(parents=True)
    (context / "added" / "deep" / "file").write_text("added\n")
    (context / "added" / "link").symlink_to("deep/file")
    (context / "Dockerfile").write_text(DOCKERFILE)
    image = make_image()
    if driver == "xfs":
        (context / "Dockerfile").write_text(DOCKERFILE.replace("\nRUN mkdir", " && mkdir"))
        for name, value in rescue_from_xfs(directory, image, context):
            tell(name, value)
        return

    with storage_driver(driver, directory, OPTIONS) as arguments, DockerEngine(directory, arguments) as engine:
        info = engine.info()
        assert info["Driver"] == driver, info["Driver"]
        tell("status names", [name for name, _ in info["DriverStatus"]])
        engine.import_image(image, "image")
        engine.build(context, "built")
        tell("layers", layers(engine.save("built")))
        engine.import_image(make_reserved(), "substitutes")
        engine.create("substitutes", "substitutes")
        found = listing(engine.export("substitutes"))
        tell("substitutes", sorted(name for name in found if "kept" in name))
        engine.remove_containers("substitutes")
        engine.remove_images("substitutes")
        if driver == "cowfs":  # devicemapper's own takes it for a deletion
            tell("reserved", commit_reserved(engine, directory))
        engine.create("one", "built")
        (directory / "copied in").write_text("from outside\n")
        engine.copy_in(directory / "copied in", "one", "/etc", "copied")
        engine.copy_in(context / "added", "one", "/usr/share/there")
        tell("diff", engine.changes("one"))
        tell("export", listing(engine.export("one")))
        tell("run", engine.run("built", "/bin/busybox", "cat", "/etc/changed"))

    if driver == "devicemapper":
        save_offline(directory)
    with storage_driver(driver, directory, OPTIONS) as arguments, DockerEngine(directory, arguments) as engine:
        tell("diff after a restart", engine.changes("one"))
        tell("export after a restart", listing(engine.export("one")))
        tell("copied out", engine.copy_out("one", "/etc/copied").decode())
        engine.commit("one", "committed")
        tell("committed layer", layers(engine.save("committed"))[-1])
        engine.remove_containers("one")
        engine.remove_images("committed", "built", "image")
        left = engine.images()
        assert not left, left
        tell("images after rmi", left)
        if driver == "devicemapper":
            tell("offline", load_saved(engine, directory))
            tell("registry", through_a_registry(engine, directory))


if __name__ == "__main__":
    os.umask(0o022)
    name, folder = sys.argv[1:]
    try:
        main(name, Path(folder))
    finally:
        shutil.rmtree(Path(folder) / "root", ignore_errors=True)
