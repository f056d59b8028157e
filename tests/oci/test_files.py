"""Images in archives of `docker save` and in OCI layouts, in and out, and archives of single layers."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import zstandard

import cowfs
from cowfs.errors import CowfsError, DeviceExists, UsageError
from cowfs.oci.archives import open_images
from cowfs.oci.blobs import ArchiveBlobs, DirectoryBlobs, ImageLayout
from cowfs.oci.documents import BadImage
from cowfs.oci.incoming import Brought, Incoming
from cowfs.oci.outgoing import ExportedImage, Outgoing
from tests.oci.conftest import AMD64, EPOCH, names_in
from tests.oci.layer_archives import LOWER, UPPER, add_file, config_of, docker_archive, layer_archive, layout
from tests.oci.small_registry import digest_of

LIMIT_BYTES = 64 << 20


def bring(home: Path, path: Path, name: str | None = None) -> list[Brought]:
    with open_images(path, AMD64, limit_bytes=LIMIT_BYTES, scratch=home) as images:
        incoming = Incoming(home, partial(cowfs.open_home, home), pytest.fail)
        return [incoming.bring(image, name=name) for image in images]


def export(home: Path, layer: str, target: Path, tags: list[str]) -> ExportedImage:
    with cowfs.open_home(home) as opened:
        if target.suffix == ".tar":
            with target.open("xb") as file:
                return Outgoing(opened, EPOCH).export(
                    layer, ImageLayout(ArchiveBlobs(file, "it")), tags, AMD64, lambda _count: None
                )
        blobs = DirectoryBlobs(target)
        return Outgoing(opened, EPOCH).export(layer, ImageLayout(blobs), tags, AMD64, lambda _count: None)


def old_archive(path: Path) -> bytes:
    return docker_archive(path, [LOWER, UPPER], ["web:1"])


def layout_directory(path: Path) -> bytes:
    return layout(path, [LOWER, UPPER], "web:1")


def layout_archive(path: Path) -> bytes:
    config = layout(path.with_suffix(".d"), [LOWER, UPPER], "web:1")
    with tarfile.open(path, "w") as tar:
        tar.add(path.with_suffix(".d"), ".")
    return config


def compressed(path: Path) -> bytes:
    config = old_archive(path.with_suffix(".plain"))
    path.write_bytes(gzip.compress(path.with_suffix(".plain").read_bytes()))
    return config


def unpacked(path: Path) -> bytes:
    config = old_archive(path.with_suffix(".tar"))
    path.mkdir()
    subprocess.run(["tar", "-C", path, "-xf", path.with_suffix(".tar")], check=True)
    return config


@pytest.mark.parametrize("make", [old_archive, layout_directory, layout_archive, compressed, unpacked])
def test_images_come_in_with_their_ids(homes: list[Path], tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    config = make(tmp_path / "image")
    (brought,) = bring(homes[0], tmp_path / "image", "web")
    assert brought.image_id == digest_of(config)
    assert brought.tags == ["web:1"]
    assert [layer.diff_id for layer in brought.layers] == [digest_of(LOWER), digest_of(UPPER)]
    found = bytearray()
    with cowfs.open_home(homes[0]) as home:
        home.read_file("web", "/etc/name", found.extend)
        assert not list(home.layers.changes("web", brought.layers[-1].id))
    assert bytes(found) == b"upper\n"
    (again,) = bring(homes[0], tmp_path / "image")
    assert {layer.state for layer in again.layers} == {"present"}


def test_equal_layers_are_links_in_old_archives(homes: list[Path], tmp_path: Path) -> None:
    docker_archive(tmp_path / "image", [LOWER, UPPER, LOWER], ["web:1"])
    (brought,) = bring(homes[0], tmp_path / "image")
    assert [layer.diff_id for layer in brought.layers] == [digest_of(LOWER), digest_of(UPPER), digest_of(LOWER)]
    assert len({layer.id for layer in brought.layers}) == 3


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_a_single_layer(homes: list[Path], tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "layer").write_bytes(pack(LOWER))
    (brought,) = bring(homes[0], tmp_path / "layer")
    assert (brought.image_id, [layer.diff_id for layer in brought.layers]) == (None, [digest_of(LOWER)])


@pytest.mark.parametrize("target", ["out.tar", "out"])
def test_what_came_in_goes_out_with_its_ids(homes: list[Path], tmp_path: Path, target: str) -> None:
    config = old_archive(tmp_path / "image")
    bring(homes[0], tmp_path / "image", "web")
    exported = export(homes[0], "web", tmp_path / target, ["web:1"])
    assert exported.image_id == digest_of(config)
    assert [(layer.diff_id, layer.why_new) for layer in exported.layers] == [
        (digest_of(LOWER), ""),
        (digest_of(UPPER), ""),
    ]
    (brought,) = bring(homes[1], tmp_path / target)
    assert brought.image_id == digest_of(config)
    if shutil.which("skopeo"):
        kind = "oci-archive" if target.endswith(".tar") else "oci"
        raw = subprocess.run(
            ["skopeo", "inspect", "--config", "--raw", f"{kind}:{tmp_path / target}"], check=False, capture_output=True
        )
        assert raw.stdout == config
        if kind == "oci-archive":
            subprocess.run(["skopeo", "inspect", f"docker-archive:{tmp_path / target}"], check=True)


def test_layers_that_were_made_here_go_out_and_come_back(homes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(LOWER)
    with cowfs.open_home(homes[0]) as home:
        home.layers.create("one")
        with (tmp_path / "layer").open("rb") as file:
            home.layers.apply("one", file)
        home.layers.create("same", "one")
        home.layers.create("two", "same")
        (tmp_path / "layer").write_bytes(UPPER)
        with (tmp_path / "layer").open("rb") as file:
            home.layers.apply("two", file)
    exported = export(homes[0], "two", tmp_path / "out.tar", ["two:1"])
    assert [layer.name for layer in exported.layers] == ["one", "two"]  # what changes nothing is left out
    (brought,) = bring(homes[1], tmp_path / "out.tar")
    assert brought.image_id == exported.image_id
    empty = export(homes[1], brought.layers[-1].id, tmp_path / "again.tar", ["two:1"])
    assert empty.image_id == exported.image_id
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "out.tar").read_bytes()


def test_a_copy_of_a_home_knows_the_images_too(homes: list[Path], tmp_path: Path) -> None:
    config = old_archive(tmp_path / "image")
    bring(homes[0], tmp_path / "image", "web")
    with cowfs.open_home(homes[0]) as home:
        home.clone(tmp_path / "clone")
    exported = export(tmp_path / "clone", "web", tmp_path / "out", ["web:1"])
    assert exported.image_id == digest_of(config)
    assert not any(layer.why_new for layer in exported.layers)


def test_several_images_share_their_layers(homes: list[Path], tmp_path: Path) -> None:
    docker_archive(tmp_path / "first", [LOWER], ["one:1"])
    docker_archive(tmp_path / "second", [LOWER, UPPER], ["two:1"])
    bring(homes[0], tmp_path / "first")
    (two,) = bring(homes[0], tmp_path / "second")
    assert [layer.state for layer in two.layers] == ["present", "archive"]
    assert len(names_in(homes[0])) == 2


def test_a_name_that_is_taken(homes: list[Path], tmp_path: Path) -> None:
    old_archive(tmp_path / "image")
    with cowfs.open_home(homes[0]) as home:
        home.create("web")
    with pytest.raises(DeviceExists, match="device 'web' exists already"):
        bring(homes[0], tmp_path / "image", "web")
    with pytest.raises(UsageError, match="cannot be the name of a device"):
        bring(homes[0], tmp_path / "image", "a/b")
    assert names_in(homes[0]) == []


# ------------------------------------------------------------------ what is no image, or damaged


def test_a_directory_of_files_is_no_layout(homes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with pytest.raises(UsageError, match=r"is no OCI layout.*'cowfs import'"):
        bring(homes[0], tmp_path / "files")


def test_a_file_that_is_empty(homes: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.tar").touch()
    with pytest.raises(UsageError, match=r"empty\.tar is empty, not even an archive of no files"):
        bring(homes[0], tmp_path / "empty.tar")


def test_what_is_no_file(homes: list[Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is neither a file nor a directory"):
        bring(homes[0], tmp_path / "pipe")
    with pytest.raises(CowfsError, match=f"cannot read {tmp_path}/missing: No such file"):
        bring(homes[0], tmp_path / "missing")
    (tmp_path / "text").write_bytes(b"no archive" * 100)
    with pytest.raises(UsageError, match="not a tar archive"):
        bring(homes[0], tmp_path / "text")
    with (tmp_path / "disk").open("wb") as disk:
        disk.write(bytes(1024) + b"superblock")
        disk.truncate(4 * LIMIT_BYTES)
    with pytest.raises(UsageError, match=r"not a tar archive: .*is it a disk image"):
        bring(homes[0], tmp_path / "disk")


def write_docker(path: Path, layers: list[str], config: str = "config.json") -> None:
    with tarfile.open(path, "w") as tar:
        add_file(tar, "config.json", config_of([LOWER]))
        add_file(tar, "layer.tar", LOWER)
        add_file(tar, "manifest.json", json.dumps([{"Config": config, "RepoTags": None, "Layers": layers}]).encode())


@pytest.mark.parametrize(
    ("layers", "config", "match"),
    [
        (["missing.tar"], "config.json", "is incomplete: there is no 'missing.tar'"),
        (["layer.tar"], "other.json", "is incomplete: there is no 'other.json'"),
        ([], "config.json", "has 0 layers and its configuration 1 diff ids"),
        (["layer.tar"], "layer.tar", "is damaged"),
    ],
)
def test_a_damaged_archive(homes: list[Path], tmp_path: Path, layers: list[str], config: str, match: str) -> None:
    write_docker(tmp_path / "image", layers, config)
    with pytest.raises(BadImage, match=match):
        bring(homes[0], tmp_path / "image")
    assert names_in(homes[0]) == []


def test_a_directory_is_not_left(homes: list[Path], tmp_path: Path) -> None:
    """Whatever names and links stand in it."""
    directory = tmp_path / "layout"
    config = layout(directory, [LOWER], "1")
    (tmp_path / "secret").write_bytes(config)
    blob = directory / "blobs" / "sha256" / digest_of(config).removeprefix("sha256:")
    blob.unlink()
    blob.symlink_to(tmp_path / "secret")
    with pytest.raises(BadImage, match="which is outside of it"):
        bring(homes[0], directory)


def test_a_blob_that_is_damaged(homes: list[Path], tmp_path: Path) -> None:
    directory = tmp_path / "layout"
    layout(directory, [LOWER, UPPER], "1")
    blob = directory / "blobs" / "sha256" / digest_of(gzip.compress(UPPER)).removeprefix("sha256:")
    if not blob.exists():
        blob = sorted((directory / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)[0]
    blob.write_bytes(blob.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises(BadImage, match="damaged"):
        bring(homes[0], directory)
    assert names_in(homes[0]) == []


def test_a_compressed_file_that_unpacks_to_too_much(homes: list[Path], tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bomb", "wb", 9) as file:
        for _ in range(80):
            file.write(bytes(1 << 20))
    with pytest.raises(BadImage, match="holds more than 64 MiB"):
        bring(homes[0], tmp_path / "bomb")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_many_kinds_are_made_again_byte_by_byte(
    homes: list[Path],
    tmp_path: Path,
    format: int,  # noqa: A002
) -> None:
    long = "/".join(["a" * 50] * 2)
    files: dict[str, bytes | None] = {"a" * 50: None, long: b"long\n", ".wh.gone": b"", "x": b"", "y": b"1" * 513}
    archive = layer_archive(files, format=format)
    (tmp_path / "layer").write_bytes(archive)
    (brought,) = bring(homes[0], tmp_path / "layer")
    exported = export(homes[0], brought.layers[0].id, tmp_path / "out", [])
    assert [(layer.diff_id, layer.why_new) for layer in exported.layers] == [(digest_of(archive), "")]


def test_an_archive_that_has_a_file_twice_is_packed_anew(homes: list[Path], tmp_path: Path) -> None:
    whole = layer_archive({"x": b"first"})[:1024] + layer_archive({"x": b"second"})
    (tmp_path / "layer").write_bytes(whole)
    (brought,) = bring(homes[0], tmp_path / "layer")
    exported = export(homes[0], brought.layers[0].id, tmp_path / "out", [])
    assert exported.layers[0].why_new == "its original archive is not known"
