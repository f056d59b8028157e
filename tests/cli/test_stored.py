"""What a Docker daemon left, through the command line: the directory of Docker 20.10 in tests/data/README.md.

Its three images have their original ids; a container is added by hand, as a daemon writes it. All is asked of that
directory, and of one with xfs in the devices. Docker itself loads what is saved in tests/docker/test_real_docker.py.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cowfs.devices import opening
from cowfs.pool import load_backend
from tests.cli.conftest import Outcome, Run
from tests.conftest import Account
from tests.docker_home import BUSYBOX_BYTES, DIRECTORY, LAYER_1, LAYER_2, LAYER_3, UNPACK
from tests.docker_home_xfs import put_xfs_into

HELLO = "7ac9d0bc1e92970c485a949ae196ac84865f9fb8cc2af2a72bfc451ec54441fe"
TWO = "b9588530e9eb6cb18bde49f66f5b7403c59035a6a882b886ab281cfbb83a6712"
BETWEEN = "f7372e66d5a003eddf7eb907e1857fc05859017cda09b65a2c61783cf679bfbb"
CHAINS = ["95307b2b364d", "17fece36f748", "46d2b759c8ce"]
CONTAINER = "ab" * 32

Docker = Callable[..., Outcome]


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def filesystem(request: pytest.FixtureRequest) -> str:
    """What the devices hold."""
    if request.param == "xfs":
        request.getfixturevalue("needs_mkfs_xfs")
    return str(request.param)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, filesystem: str) -> Path:
    """The daemon's directory, which no test changes."""
    directory = tmp_path_factory.mktemp("original")
    subprocess.run(UNPACK, cwd=directory, check=True)
    if filesystem == "xfs":
        put_xfs_into(directory / DIRECTORY, tmp_path_factory.mktemp("scratch"))
    return directory


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """The daemon's directory with records that a test may change; the home is the original one."""
    directory = tmp_path / "docker"
    shutil.copytree(original / "image", directory / "image")
    (directory / DIRECTORY).symlink_to(original / DIRECTORY)
    add_container(directory, CONTAINER, "web", LAYER_3)
    return directory


def copied(original: Path, directory: Path) -> Path:
    """A copy of the daemon's directory, home included, that a test may change."""
    copy = directory / "docker"
    subprocess.run(["cp", "-a", "--sparse=always", original, copy], check=True)
    return copy


def test_recovery_finds_out_which_layer_a_device_is(original: Path, tmp_path: Path, cowfs_anywhere: Run) -> None:
    """By its files: the file with a name is that of the lowest layer, whose files all layers above it have too."""
    root = copied(original, tmp_path)
    records = [root / DIRECTORY / "metadata" / name for name in (LAYER_1, LAYER_2, LAYER_3)]
    numbers = [json.loads(record.read_bytes())["device_id"] for record in records]
    for record in records:
        record.unlink()
    said = cowfs_anywhere("--home", root, "recover").out
    for thin_id, name, layer in ((4, LAYER_2, "67103c5374f8"), (6, LAYER_3, "92e8487a2358")):
        assert f"device 'recovered-{thin_id}' holds the files of layer {layer}: renamed to '{name}'\n" in said
    assert [json.loads(record.read_bytes())["device_id"] for record in records] == numbers
    assert cowfs_anywhere("--home", root, "docker", "save", "two", "--output", tmp_path / "two.tar").status == 0
    assert cowfs_anywhere("--home", root, "recover").out == "nothing to recover\n"


def test_recovery_gives_no_name_that_the_files_do_not_bear_out(
    original: Path, tmp_path: Path, cowfs_anywhere: Run
) -> None:
    """Nor where the recipe, by which it would be known, is missing."""
    root = copied(original, tmp_path)
    (root / DIRECTORY / "metadata" / LAYER_2).unlink()
    (recipe,) = (root / "image" / DIRECTORY / "layerdb" / "sha256").glob(f"{CHAINS[1]}*/tar-split.json.gz")
    recipe.unlink()
    assert "adopted as 'recovered-4'\n" in cowfs_anywhere("--home", root, "recover").out
    assert not (root / DIRECTORY / "metadata" / LAYER_2).exists()
    shutil.rmtree(root / DIRECTORY / "metadata")
    assert "thin 4 (" in cowfs_anywhere("--home", root, "recover", "--dry-run").out


@pytest.fixture
def docker(root: Path, cowfs_anywhere: Run) -> Docker:
    return lambda *words: cowfs_anywhere("--home", root, "docker", *words)


def add_container(root: Path, number: str, name: str, device: str) -> None:
    """A container as a daemon writes it down, whose files are those of a device that is there."""
    record = root / "image" / DIRECTORY / "layerdb" / "mounts" / number
    record.mkdir(parents=True)
    (record / "mount-id").write_text(device)
    (record / "init-id").write_text(f"{device}-init")
    (record / "parent").write_text(f"sha256:{full_chain(root, CHAINS[2])}")
    settings = root / "containers" / number
    settings.mkdir(parents=True)
    document = {
        "ID": number,
        "Name": f"/{name}",
        "Created": "2020-01-02T03:04:05.6Z",
        "Path": "/busybox",
        "Args": ["sleep", "9"],
        "Image": f"sha256:{TWO}",
        "Driver": DIRECTORY,
        "Config": {"Image": "two", "Unknown": [1]},
        "State": {"ExitCode": 137, "StartedAt": "2020-01-02T03:04:06Z", "FinishedAt": "2020-01-02T04:04:06Z"},
    }
    (settings / "config.v2.json").write_text(json.dumps(document))


def full_chain(root: Path, digits: str) -> str:
    (name,) = (name for name in os.listdir(layers_of(root)) if name.startswith(digits))
    return name


def layers_of(root: Path) -> Path:
    return root / "image" / DIRECTORY / "layerdb" / "sha256"


def saved_images(archive: Path | bytes) -> dict[str, dict[str, Any]]:
    """Image id -> tags and the diff ids of its layers, each checked by its content, as 'docker load' finds them."""
    data = archive if isinstance(archive, bytes) else archive.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        found = {}
        for image in json.loads(member("manifest.json")):
            config = member(image["Config"])
            layers = [hashlib.sha256(member(name)).hexdigest() for name in image["Layers"]]
            assert json.loads(config)["rootfs"]["diff_ids"] == [f"sha256:{digest}" for digest in layers]
            found[hashlib.sha256(config).hexdigest()] = {"tags": image["RepoTags"], "layers": layers}
        for name in tar.getnames():
            if name.startswith("blobs/sha256/"):
                assert hashlib.sha256(member(name)).hexdigest() == name.rpartition("/")[2]
        assert json.loads(member("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
        return found


# ------------------------------------------------------------------ lists


def test_images_with_their_names_and_sizes(cowfs_anywhere: Run, root: Path) -> None:
    for home in (root, root / DIRECTORY):  # the daemon's directory, or the home in it
        if home.is_symlink():
            continue  # the original beside it has no records
        rows = cowfs_anywhere("--home", home, "--json", "docker", "images").json
        assert [(row["id"], row["tags"], row["size_bytes"]) for row in rows] == [
            (TWO, ["two:latest"], BUSYBOX_BYTES + 4),
            (HELLO, ["hello:1"], BUSYBOX_BYTES),
        ]
        assert [row["device"] for row in rows] == [LAYER_3, LAYER_1]


def test_the_home_below_leads_to_the_records_too(original: Path, cowfs_anywhere: Run) -> None:
    rows = cowfs_anywhere("--home", original / DIRECTORY, "--json", "docker", "images", "--all").json
    assert [row["id"] for row in rows] == [TWO, BETWEEN, HELLO]


def test_tables_for_people(docker: Docker) -> None:
    assert docker("images").out.splitlines()[1].split()[:3] == ["two", "latest", TWO[:12]]
    assert docker("ps").out.splitlines()[1].split() == [
        *(CONTAINER[:12], "two", "/busybox", "sleep", "9", "2020-01-02", "03:04:05"),
        *("exited", "(137)", "2020-01-02", "04:04:06", "web"),
    ]
    tree = docker("tree").out.splitlines()
    assert [line.split()[0 if line[0].isalnum() else 1] for line in tree] == CHAINS
    assert tree[2].endswith("image two:latest, container web")
    assert "COPY file:c30af0dc" in docker("history", "two").out


def test_history_names_the_layer_of_each_step(cowfs_anywhere: Run, root: Path) -> None:
    rows = cowfs_anywhere("--home", root, "--json", "docker", "history", "two").json
    assert [row["layer"].removeprefix("sha256:")[:12] for row in rows] == CHAINS[::-1]
    assert [row["size_bytes"] for row in rows] == [2, 2, BUSYBOX_BYTES]
    assert [row["device"] for row in rows] == [LAYER_3, LAYER_2, LAYER_1]


@pytest.mark.parametrize(
    "name", ["web", "/web", CONTAINER, CONTAINER[:3], "two", "two:latest", TWO[:5], f"sha256:{TWO}"]
)
def test_inspect_by_any_name(docker: Docker, name: str) -> None:
    found = docker("inspect", name).json
    assert found["device"] == LAYER_3
    assert [layer["device"] for layer in found["layers"]] == [LAYER_1, LAYER_2, LAYER_3]
    assert found["document"]["Name" if found["kind"] == "container" else "os"] in ("/web", "linux")


def test_space_by_image_and_container(cowfs_anywhere: Run, root: Path, filesystem: str) -> None:
    report = cowfs_anywhere("--home", root, "--json", "docker", "du").json
    rows = {row["name"]: row for row in report["rows"]}
    assert (rows["two:latest"]["shared_bytes"], rows["two:latest"]["unique_bytes"]) == (BUSYBOX_BYTES, 4)
    assert (rows["hello:1"]["shared_bytes"], rows["hello:1"]["unique_bytes"]) == (BUSYBOX_BYTES, 0)
    if filesystem == "ext4":
        assert rows["two:latest"]["exclusive_bytes"] == (320 + 384) << 10  # of the devices of its own two layers
    assert rows["web"]["shared_bytes"] == BUSYBOX_BYTES + 4


# ------------------------------------------------------------------ names in other commands


def test_names_stand_for_devices_everywhere(original: Path, tmp_path: Path, cowfs_anywhere: Run) -> None:
    copy = copied(original, tmp_path)
    add_container(copy, CONTAINER, "web", LAYER_2)
    for home in (copy, copy / DIRECTORY):
        assert [line[3:] for line in cowfs_anywhere("--home", home, "changes", "two", "web").out.splitlines()] == ["/b"]
    assert cowfs_anywhere("--home", copy, "--json", "inspect", "web").json["id"] == 4
    assert cowfs_anywhere("--home", copy, "cat", "web:/a").out == "a\n"
    assert cowfs_anywhere("--home", copy, "cat", "two:latest:/b").out == "b\n"
    assert "there is no device 'nobody'" in cowfs_anywhere("--home", copy, "inspect", "nobody").error


# ------------------------------------------------------------------ out


def test_save_gives_the_original_ids(docker: Docker, tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    outcome = docker("save", "two", HELLO[:6], "-o", archive)
    assert (outcome.status, outcome.err) == (0, "")
    images = saved_images(archive)
    assert {number: image["tags"] for number, image in images.items()} == {TWO: ["two:latest"], HELLO: ["hello:1"]}
    assert images[TWO]["layers"][0] == images[HELLO]["layers"][0]
    with tarfile.open(archive) as tar:
        assert len(tar.getnames()) == len(set(tar.getnames()))  # a shared layer once


def test_an_archive_that_cannot_be_written_is_no_damaged_layer(root: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with (tmp_path / "images.tar").open("xb") as out:
            command = [sys.executable, "-m", "cowfs", "--home", str(root), "docker", "save", "two"]
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (done.returncode, done.stderr) == (1, b"cowfs: cannot write standard output: File too large\n")


def test_an_oci_layout(docker: Docker, tmp_path: Path) -> None:
    docker("save", "two", "--oci", tmp_path / "layout")
    index = json.loads((tmp_path / "layout" / "index.json").read_text())
    (entry,) = index["manifests"]
    assert entry["annotations"] == {
        "io.containerd.image.name": "docker.io/library/two:latest",
        "org.opencontainers.image.ref.name": "latest",
    }
    manifest = json.loads((tmp_path / "layout" / "blobs" / entry["digest"].replace(":", "/")).read_bytes())
    assert manifest["config"]["digest"] == f"sha256:{TWO}"
    for item in [manifest["config"], *manifest["layers"]]:
        assert (tmp_path / "layout" / "blobs" / item["digest"].replace(":", "/")).stat().st_size == item["size"]


def test_export_and_cp(docker: Docker, tmp_path: Path) -> None:
    assert docker("export", "web", "-o", tmp_path / "web.tar").status == 0
    with tarfile.open(tmp_path / "web.tar") as tar:
        assert sorted(tar.getnames()) == [".", "a", "b", "busybox"]
    assert docker("cp", "web:/b", tmp_path / "b").status == 0
    assert (tmp_path / "b").read_text() == "b\n"
    assert docker("cp", "two:latest:/a", tmp_path).status == 0
    assert (tmp_path / "a").read_text() == "a\n"


@pytest.mark.parametrize("kind", ["root", "ordinary"])
def test_nothing_is_changed(request: pytest.FixtureRequest, kind: str) -> None:
    """Neither by root nor by an ordinary user, in a directory that could be written: not even a lock is left."""
    account: Account = request.getfixturevalue(f"{kind}_user")
    root = account.mkdir("docker")
    account.run(UNPACK, cwd=root)
    before = snapshot(root)
    out = account.directory / "all"
    for words in (["images"], ["ps"], ["tree"], ["du"], ["inspect", "two"], ["save", "--all", out]):
        account.run(["cowfs", "--home", root, "docker", *words])
    assert snapshot(root) == before
    account.run(["sh", "-c", 'tar -C "$1" -cf "$2" .', "sh", out / "images", account.directory / "all.tar"])
    archive = io.BytesIO((account.directory / "all.tar").read_bytes())
    with tarfile.open(fileobj=archive) as tar:
        assert f"./blobs/sha256/{BETWEEN}" in tar.getnames()


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and status.st_size < 1 << 27 else ""
        found[str(path)] = (
            status.st_mode,
            status.st_uid,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            digest,
        )
    return found


# ------------------------------------------------------------------ damage


def test_a_missing_recipe_gives_new_ids_and_says_so(docker: Docker, root: Path, tmp_path: Path) -> None:
    (layers_of(root) / full_chain(root, CHAINS[1]) / "tar-split.json.gz").unlink()
    outcome = docker("save", "two", "hello:1", "-o", tmp_path / "images.tar")
    assert outcome.status == 0
    assert outcome.error.startswith("image two:latest has the new id sha256:")
    images = saved_images(tmp_path / "images.tar")
    assert HELLO in images
    assert TWO not in images
    (two,) = (image for image in images.values() if image["tags"] == ["two:latest"])
    with tarfile.open(tmp_path / "images.tar") as tar:
        layer = tar.extractfile(f"blobs/sha256/{two['layers'][1]}")
        with tarfile.open(fileobj=layer) as inner:
            assert [name for name in inner.getnames() if name not in (".", "./")] == ["a"]


def change_recipe(root: Path, digits: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    path = layers_of(root) / full_chain(root, digits) / "tar-split.json.gz"
    entries = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(entries)
    path.write_bytes(gzip.compress("".join(json.dumps(entry) + "\n" for entry in entries).encode()))


def longer(entries: list[dict[str, Any]]) -> None:
    next(entry for entry in entries if entry.get("size"))["size"] += 1


def elsewhere(entries: list[dict[str, Any]]) -> None:
    next(entry for entry in entries if entry.get("size"))["name"] = "../../../etc/passwd"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "no gzip": lambda path: path.write_bytes(b"{}\n"),
    "no json": lambda path: path.write_bytes(gzip.compress(b"{]\n")),
    "an entry less": lambda path: path.write_bytes(
        gzip.compress(b"".join(gzip.decompress(path.read_bytes()).splitlines(keepends=True)[1:]))
    ),
    "another type": lambda path: path.write_bytes(gzip.compress(b'{"type":3,"position":0}\n')),
    "a segment less": lambda path: path.write_bytes(
        gzip.compress(b"".join(gzip.decompress(path.read_bytes()).splitlines(keepends=True)[:1]))
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_recipe_is_one_line(docker: Docker, root: Path, tmp_path: Path, damage: str) -> None:
    DAMAGES[damage](layers_of(root) / full_chain(root, CHAINS[1]) / "tar-split.json.gz")
    outcome = docker("save", "two", "-o", tmp_path / "images.tar")
    assert outcome.status != 0
    assert "damaged" in outcome.error
    assert os.listdir(tmp_path) == ["docker"]  # nothing is left


@pytest.mark.parametrize("change", [longer, elsewhere])
def test_a_file_that_is_not_what_it_was(
    docker: Docker, root: Path, tmp_path: Path, change: Callable[[list[dict[str, Any]]], object]
) -> None:
    """Nothing outside of the layer is read; --new-ids packs the files as they are."""
    change_recipe(root, CHAINS[1], change)
    outcome = docker("save", "two", "-o", tmp_path / "images.tar")
    assert outcome.error.startswith("layer 67103c5374f8 is damaged: ")
    assert outcome.error.endswith("; --new-ids packs its files as they are, with new ids")
    assert not (tmp_path / "images.tar").exists()
    outcome = docker("save", "two", "--new-ids", "-o", tmp_path / "images.tar")
    assert outcome.error.startswith("image two:latest has the new id sha256:")
    (image,) = saved_images(tmp_path / "images.tar").values()
    assert image["layers"][0] == "95307b2b364d20236406302740c90df16197c1e18d6f1e9d7974773c4098c65c"


def test_a_layer_whose_device_is_missing_is_not_packed_anew(
    cowfs_anywhere: Run, original: Path, tmp_path: Path
) -> None:
    copy = copied(original, tmp_path)
    (copy / DIRECTORY / "metadata" / LAYER_2).unlink()
    for words in (["two"], ["two", "--new-ids"]):
        outcome = cowfs_anywhere("--home", copy, "docker", "save", *words, "-o", tmp_path / "images.tar")
        assert outcome.status == 5
        assert f"are missing: there is no device '{LAYER_2}' in the home" in outcome.error
        assert outcome.error.endswith("; 'cowfs recover --dry-run' says whether the pool still has them")
    outcome = cowfs_anywhere("--home", copy, "docker", "save", "--all", tmp_path / "all")
    assert "recover --dry-run" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("cowfs: 2 things could not be read; ")


def test_one_bad_layer_does_not_stop_the_rest(docker: Docker, root: Path, tmp_path: Path) -> None:
    """All that can be read is written; what cannot is listed, and the status is 1."""
    shutil.rmtree(layers_of(root) / full_chain(root, CHAINS[2]))
    (root / "image" / DIRECTORY / "imagedb" / "content" / "sha256" / BETWEEN).write_bytes(b"{")
    broken = root / "containers" / ("cd" * 32)
    broken.mkdir()
    (broken / "config.v2.json").write_text('{"ID": "cd')
    outcome = docker("save", "--all", tmp_path / "all")
    assert outcome.status == 1
    report = json.loads((tmp_path / "all" / "rescued.json").read_text())
    assert [image["id"] for image in report["images"]] == [HELLO]
    assert [container["name"] for container in report["containers"]] == ["web"]
    assert len(report["unreadable"]) == 3
    for line, words in zip(
        sorted(report["unreadable"]), ("config.v2.json is damaged", "another digest", "layer"), strict=True
    ):
        assert words in line
    assert len(outcome.err.splitlines()) == 4
    with tarfile.open(tmp_path / "all" / "containers" / "web.tar") as tar:
        assert "b" in tar.getnames()


def test_a_device_that_is_damaged_does_not_stop_the_rest(
    original: Path, tmp_path: Path, cowfs_anywhere: Run, filesystem: str
) -> None:
    copy = copied(original, tmp_path)
    add_container(copy, CONTAINER, "web", LAYER_2)
    with (
        closing(opening.open_home(copy / DIRECTORY, load_backend("emulated"))) as devices,
        devices.active.activated(LAYER_3, "writer") as thin,
    ):
        assert thin.pread(0, 4).startswith(b"XFSB") is (filesystem == "xfs")
        thin.pwrite(0, b"damage" * 1000)
    outcome = cowfs_anywhere("--home", copy, "docker", "save", "--all", tmp_path / "all")
    assert outcome.status == 1
    report = json.loads((tmp_path / "all" / "rescued.json").read_text())
    assert {image["id"] for image in report["images"]} == {HELLO, BETWEEN}
    assert [container["name"] for container in report["containers"]] == ["web"]
    (line,) = report["unreadable"]
    assert line.startswith("image two:latest: ")
    assert LAYER_3 in line
    with tarfile.open(tmp_path / "all" / "containers" / "web.tar") as tar:
        assert "a" in tar.getnames()


def test_directories_of_no_devicemapper_daemon(cowfs_anywhere: Run, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    cases: dict[str, Callable[[], object]] = {
        "it does not exist": lambda: None,
        "the directory's name": other.mkdir,
        "the driver overlay2": lambda: (other / "image" / "overlay2").mkdir(parents=True),
    }
    words = {"the directory's name": "name the daemon's directory"}
    for text, prepare in cases.items():
        prepare()
        outcome = cowfs_anywhere("--home", other, "docker", "images")
        assert outcome.status != 0
        assert words.get(text, text) in outcome.error
    # Which has a directory of the driver's name, and no layers in it.
    assert "name the daemon's directory" in cowfs_anywhere("--home", root / "image", "docker", "images").error
    (root / DIRECTORY).unlink()
    assert (
        "the directory 'devicemapper' with their layers is missing"
        in cowfs_anywhere("--home", root, "docker", "images").error
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["save"], "save takes images"),
        (["save", "web"], "that is a container, which 'docker export' writes"),
        (["export", "two"], "that is an image, which 'docker save' writes"),
        (["save", "none"], "there is no image 'none'"),
        (["inspect", "a:b@c"], "there is no container or image 'a:b@c'"),
        (["cp", "web", "x"], "write NAME:PATH"),
        (["save", "two", "--all", "x"], "save takes images"),
        (["save", "two", "--oci", "x", "-o", "y"], "exclude each other"),
    ],
)
def test_bad_input_is_one_line(docker: Docker, words: list[str], text: str) -> None:
    outcome = docker(*words)
    assert outcome.status != 0
    assert text in outcome.error


def test_an_existing_name_is_refused(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("kept")
    for words in (["save", "two", "-o"], ["save", "two", "--oci"], ["save", "--all"], ["export", "web", "-o"]):
        assert "exists" in docker(*words, tmp_path / "there").error
    assert (tmp_path / "there").read_text() == "kept"


def test_an_interrupted_pull_is_no_image_and_no_hindrance(
    original: Path, root: Path, tmp_path: Path, cowfs_anywhere: Run
) -> None:
    """What a daemon leaves that was killed while it pulled (moby 20.10, `layer/filestore.go`, `distribution`).

    One layer is being written down: its device is there, its records are below `tmp`. The layer before it is complete,
    with a device, and no image names it.
    """
    layerdb = root / "image" / DIRECTORY / "layerdb"

    def run(*words: str | Path) -> Outcome:
        return cowfs_anywhere("--home", root, *words)

    before = {name: run("--json", "docker", name) for name in ("images", "ps")}
    writing = layerdb / "tmp" / "write-set-182047"
    writing.mkdir(parents=True)
    (writing / "cache-id").write_text(LAYER_3)
    (writing / "diff").write_text("sha256:" + "1" * 64)
    (writing / "tar-split.json.gz").write_bytes(gzip.compress(b"{}")[:9])
    diff_id = "sha256:" + "2" * 64
    parent = "sha256:" + sorted(path.name for path in (layerdb / "sha256").iterdir())[0]
    name = hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest()
    (layerdb / "sha256" / name).mkdir()
    records = {"cache-id": LAYER_3, "diff": diff_id, "parent": parent, "size": "7"}
    for file, text in records.items():
        (layerdb / "sha256" / name / file).write_text(text)
    content = root / "image" / DIRECTORY / "imagedb" / "content" / "sha256"
    (content / ".tmp-0123456789").write_bytes(b'{"architecture"')
    (root / "image" / DIRECTORY / ".tmp-repositories.json421").write_bytes(b'{"Repo')
    (root / "tmp").mkdir()
    (root / "tmp" / "GetImageBlob829430").write_bytes(b"half of a blob")
    for command, outcome in before.items():
        assert run("--json", "docker", command) == outcome
        assert outcome.err == ""
    tree = run("docker", "tree")
    assert (tree.status, tree.err) == (0, "")
    assert name[:12] in tree.out
    rescued = json.loads(run("--json", "docker", "save", "--all", tmp_path / "all").out)
    assert {image["id"] for image in rescued["images"]} == {HELLO, TWO, BETWEEN}
    assert rescued["unreadable"] == []
    usage = run("docker", "du")
    assert (usage.status, usage.err) == (0, "")
