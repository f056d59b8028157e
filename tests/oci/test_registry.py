"""Layers to and from Debian's docker-registry; skopeo is the judge of what is there, and brings what is pulled."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import IO, Any

import httpx
import msgspec
import pytest

import cowfs
from cowfs.errors import UsageError
from cowfs.oci.documents import BadImage, Platform, parse_platform
from tests.oci.conftest import SMALL, Puller, make_home, mapped_bytes, names_in, require_sound
from tests.oci.layer_archives import LOWER, UPPER, docker_archive, layer_archive
from tests.oci.small_registry import SmallRegistry, digest_of


@pytest.fixture
def name(debian_registry: str, request: pytest.FixtureRequest) -> str:
    """A repository of the test's own, with a tag."""
    return f"{debian_registry}/team/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}:1"


def skopeo(*words: str | Path) -> bytes:
    program = shutil.which("skopeo")
    if program is None:
        pytest.skip("needs skopeo; run: sudo apt-get install skopeo")
    done = subprocess.run([program, *map(str, words)], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def fill(home: Path, layers: dict[str, bytes]) -> None:
    """Make layers, each on the one before it."""
    parent = None
    with cowfs.open_home(home) as opened:
        for name, archive in layers.items():
            opened.layers.create(name, parent)
            with _file(home, archive) as file:
                opened.layers.apply(name, file)
            parent = name


def _file(home: Path, data: bytes) -> IO[bytes]:
    path = home.parent / "archive.tar"
    path.write_bytes(data)
    return path.open("rb")


def disk_digest(home: Path, device: str) -> str:
    target = home.parent / "disk.raw"
    with cowfs.open_home(home) as opened:
        opened.export_image(device, target, force=True)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def content(home: Path, device: str, path: str) -> bytes:
    found = bytearray()
    with cowfs.open_home(home) as opened:
        opened.read_file(device, path, found.extend)
    return bytes(found)


def changes(home: Path, layer: str, parent: str | None) -> list[tuple[str, str]]:
    with cowfs.open_home(home) as opened:
        return [(change.kind, change.path) for change in opened.layers.changes(layer, parent)]


def test_a_chain_is_an_image_that_skopeo_copies(homes: list[Path], puller: Puller, name: str, tmp_path: Path) -> None:
    fill(homes[0], {"lower": LOWER, "upper": UPPER})
    pushed = puller.push(homes[0], "upper", name)
    assert [(layer.name, layer.state) for layer in pushed.layers] == [("lower", "uploaded"), ("upper", "uploaded")]
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}", f"docker-archive:{tmp_path}/copied.tar:web:1")
    config = json.loads(skopeo("inspect", "--config", f"docker-archive:{tmp_path}/copied.tar"))
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in pushed.layers]
    assert skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{name}") != b""
    inspected = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))
    assert inspected["Digest"] == pushed.digest
    assert (inspected["Architecture"], inspected["Os"]) == ("amd64", "linux")
    # The same layers make the same image, of which all is there.
    again = puller.push(homes[0], "upper", name)
    assert (again.digest, again.blocks, again.uploaded_bytes) == (pushed.digest, pushed.blocks, 0)


def test_a_pull_has_the_same_blocks_and_brings_what_changed(homes: list[Path], puller: Puller, name: str) -> None:
    noise = hashlib.shake_256(b"noise").digest(3 << 20)
    fill(homes[0], {"lower": layer_archive({"noise": noise}), "middle": UPPER})
    puller.push(homes[0], "middle", name)
    first = puller.pull(homes[1], name)
    assert [layer.state for layer in first.layers] == ["blocks", "blocks"]
    assert first.downloaded_bytes > len(noise)

    fill_top = layer_archive({"top": b"top\n"})
    with cowfs.open_home(homes[0]) as opened:
        opened.layers.create("top", "middle")
        with _file(homes[0], fill_top) as file:
            opened.layers.apply("top", file)
    puller.push(homes[0], "top", name)
    second = puller.pull(homes[1], name, name="web")
    assert [layer.state for layer in second.layers] == ["present", "present", "blocks"]
    assert second.downloaded_bytes < 100_000
    assert puller.said == []

    for layer, device in zip(second.layers, ["lower", "middle", "top"], strict=True):
        assert disk_digest(homes[1], layer.id) == disk_digest(homes[0], device)
    with cowfs.open_home(homes[0]) as here, cowfs.open_home(homes[1]) as there:
        for layer, device in zip(second.layers, ["lower", "middle", "top"], strict=True):
            assert mapped_bytes(there, layer.id) == mapped_bytes(here, device)
        used_here, used_there = here.status().data_used_bytes, there.status().data_used_bytes
        base = here.inspect("base").mapped_bytes - here.inspect("base").exclusive_bytes
    assert used_there == used_here + base  # which the lowest layer there does not share
    assert content(homes[1], "web", "/top") == b"top\n"
    assert content(homes[1], "web", "/etc/name") == b"upper\n"


def test_a_layer_on_a_parent_of_an_archive_is_of_its_archive(homes: list[Path], puller: Puller, name: str) -> None:
    fill(homes[0], {"lower": LOWER})
    puller.push(homes[0], "lower", name, with_blocks=False)
    assert [layer.state for layer in puller.pull(homes[1], name).layers] == ["archive"]
    with cowfs.open_home(homes[0]) as opened:
        opened.layers.create("upper", "lower")
        with _file(homes[0], UPPER) as file:
            opened.layers.apply("upper", file)
    assert puller.push(homes[0], "upper", name).blocks is not None
    pulled = puller.pull(homes[1], name)
    assert [layer.state for layer in pulled.layers] == ["present", "archive"]
    assert content(homes[1], pulled.layers[-1].id, "/etc/name") == b"upper\n"
    assert puller.said == []


def test_blocks_are_for_pools_with_blocks_of_the_same_size(
    homes: list[Path], puller: Puller, name: str, tmp_path: Path
) -> None:
    fill(homes[0], {"lower": LOWER})
    puller.push(homes[0], "lower", name)
    coarse = make_home(tmp_path / "coarse", msgspec.structs.replace(SMALL, block_bytes=256 << 10))
    assert [layer.state for layer in puller.pull(coarse, name).layers] == ["archive"]
    require_sound(coarse)


def test_blocks_that_hold_other_files_are_refused(homes: list[Path], puller: Puller, name: str) -> None:
    """What is beside an image is not covered by its digest, so that it counts only as far as it can be checked."""
    fill(homes[0], {"lower": LOWER})
    pushed = puller.push(homes[0], "lower", name)
    with cowfs.open_home(homes[0]) as opened:
        opened.remove("lower")
    fill(homes[0], {"lower": layer_archive({"etc": None, "etc/name": b"evil!\n"})})
    other = name.replace("/team/", "/evil/")
    evil = puller.push(homes[0], "lower", other)
    _put_blocks_of_another(other, evil.digest, name, pushed.digest, pushed.layers[0].diff_id)
    pulled = puller.pull(homes[1], name)
    assert [layer.state for layer in pulled.layers] == ["archive"]
    assert len(puller.said) == 1
    assert "the blocks of layer" in puller.said[0]
    assert "other files than its archive" in puller.said[0]
    assert content(homes[1], pulled.layers[0].id, "/etc/name") == b"lower\n"


def _put_blocks_of_another(source: str, source_digest: str, target: str, digest: str, diff_id: str) -> None:
    """Have the blocks of one image say that they are those of another one."""

    def url(name: str, rest: str) -> str:
        host, _, repository = name.rpartition(":")[0].partition("/")
        return f"http://{host}/v2/{repository}/{rest}"

    def tag(found: str) -> str:
        return f"sha256-{found.removeprefix('sha256:')}"

    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"}
    with httpx.Client(headers=accept) as client:
        index = client.get(url(source, f"manifests/{tag(source_digest)}")).json()
        manifest = client.get(url(source, f"manifests/{index['manifests'][0]['digest']}")).json()
        for blob in [manifest["config"], *manifest["layers"]]:
            repository = source.rpartition(":")[0].partition("/")[2]
            client.post(url(target, f"blobs/uploads/?mount={blob['digest']}&from={repository}")).raise_for_status()
        subject = client.get(url(target, f"manifests/{digest}"))
        manifest["subject"] = {**manifest["subject"], "digest": digest, "size": len(subject.content)}
        manifest["layers"][0]["annotations"]["io.cowfs.diff-id"] = diff_id
        data = json.dumps(manifest).encode()
        kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        client.put(url(target, f"manifests/{digest_of(data)}"), content=data, headers=kind).raise_for_status()
        index["manifests"][0].update(digest=digest_of(data), size=len(data))
        kind = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
        done = client.put(url(target, f"manifests/{tag(digest)}"), content=json.dumps(index).encode(), headers=kind)
        done.raise_for_status()


@pytest.fixture
def foreign(name: str, tmp_path: Path) -> tuple[str, str]:
    """An image that skopeo pushed: its name, and the digest of its configuration."""
    config = docker_archive(tmp_path / "foreign.tar", [LOWER, UPPER], ["foreign:1"])
    skopeo("copy", "--dest-tls-verify=false", f"docker-archive:{tmp_path}/foreign.tar", f"docker://{name}")
    return name, digest_of(config)


def test_an_image_of_skopeo_comes_and_goes_with_its_ids(
    homes: list[Path], puller: Puller, foreign: tuple[str, str]
) -> None:
    name, image_id = foreign
    pulled = puller.pull(homes[0], name, name="web")
    assert pulled.image_id == image_id
    assert [layer.state for layer in pulled.layers] == ["archive", "archive"]
    assert [layer.diff_id for layer in pulled.layers] == [digest_of(LOWER), digest_of(UPPER)]
    assert changes(homes[0], pulled.layers[1].id, pulled.layers[0].id) == [
        ("C", "/etc"),
        ("C", "/etc/name"),
        ("D", "/etc/old"),
    ]
    # All of it is in the registry: nothing is uploaded, and the image is the same one.
    again = puller.push(homes[0], "web", name.removesuffix(":1") + ":2")
    assert again.image_id == image_id
    assert {layer.state for layer in again.layers} == {"present"}
    # In another repository its blobs are mounted, in another registry they would be made again, with the same ids.
    elsewhere = puller.push(homes[0], "web", name.replace("/team/", "/elsewhere/"))
    assert {layer.state for layer in elsewhere.layers} == {"mounted"}
    assert skopeo("inspect", "--tls-verify=false", "--config", "--raw", f"docker://{elsewhere.reference}") == skopeo(
        "inspect", "--tls-verify=false", "--config", "--raw", f"docker://{name}"
    )


def test_a_layer_on_an_image_extends_its_configuration(
    homes: list[Path], puller: Puller, foreign: tuple[str, str], tmp_path: Path
) -> None:
    name, _ = foreign
    puller.pull(homes[0], name, name="web")
    with cowfs.open_home(homes[0]) as opened, _file(homes[0], layer_archive({"mine": b"1"})) as file:
        opened.layers.apply("web", file)
    pushed = puller.push(homes[0], "web", name)
    assert [layer.state for layer in pushed.layers] == ["present", "present", "uploaded"]
    assert pushed.blocks is None  # the lowest layer is not of cowfs
    config = json.loads(skopeo("inspect", "--tls-verify=false", "--config", f"docker://{name}"))
    assert config["config"]["Cmd"] == ["/bin/tool"]
    assert [entry["created_by"] for entry in config["history"]] == ["step 0", "step 1", "cowfs layer web"]
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/layout:1")


def test_an_original_archive_is_made_again_for_another_registry(
    homes: list[Path], puller: Puller, foreign: tuple[str, str], registry: SmallRegistry
) -> None:
    name, image_id = foreign
    puller.pull(homes[0], name, name="web")
    pushed = puller.push(homes[0], "web", f"{registry.host}/web:1")
    assert pushed.image_id == image_id
    assert [layer.diff_id for layer in pushed.layers] == [digest_of(LOWER), digest_of(UPPER)]
    assert not any(layer.why_new for layer in pushed.layers)


def test_a_layer_that_was_changed_is_no_part_of_the_image_any_more(
    homes: list[Path], puller: Puller, foreign: tuple[str, str]
) -> None:
    name, image_id = foreign
    pulled = puller.pull(homes[0], name)
    top = pulled.layers[-1].id
    before = names_in(homes[0])
    with cowfs.open_home(homes[0]) as opened, _file(homes[0], layer_archive({"etc/name": b"mine\n"})) as file:
        opened.layers.apply(top, file)
    with pytest.raises(UsageError, match="its files were changed since it came") as raised:
        puller.pull(homes[0], name)
    assert top in str(raised.value)
    assert names_in(homes[0]) == before
    pushed = puller.push(homes[0], top, name)
    assert pushed.image_id != image_id
    assert pushed.layers[-1].why_new


def test_an_index_is_chosen_from_by_platform(homes: list[Path], puller: Puller, name: str, tmp_path: Path) -> None:
    fill(homes[0], {"lower": LOWER, "upper": UPPER})
    repository = name.rpartition(":")[0]
    entries = []
    for tag, layer, platform in (("a", "lower", ("amd64", "")), ("b", "upper", ("arm64", "v8"))):
        built_for = Platform(platform[0], "linux", platform[1])
        pushed = puller.push(homes[0], layer, f"{repository}:{tag}", platform=built_for)
        size = len(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{repository}:{tag}"))
        entry = {"os": "linux", "architecture": platform[0], **({"variant": platform[1]} if platform[1] else {})}
        kind = "application/vnd.oci.image.manifest.v1+json"
        entries.append({"mediaType": kind, "digest": pushed.digest, "size": size, "platform": entry})
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    host, _, path = repository.partition("/")
    httpx.put(
        f"http://{host}/v2/{path}/manifests/many",
        content=json.dumps(index).encode(),
        headers={"Content-Type": "application/vnd.oci.image.index.v1+json"},
    ).raise_for_status()
    assert len(puller.pull(homes[1], f"{repository}:many").layers) == 1
    assert len(puller.pull(homes[1], f"{repository}:many", platform=parse_platform("linux/arm64")).layers) == 2
    with pytest.raises(UsageError, match=r"no image for linux/s390x: it is there for linux/amd64, linux/arm64/v8"):
        puller.pull(homes[1], f"{repository}:many", platform=parse_platform("linux/s390x"))
    with pytest.raises(UsageError, match=r":b is an image for linux/arm64/v8, not for linux/amd64"):
        puller.pull(homes[1], f"{repository}:b")


ARM64 = Platform("arm64", "linux", "v8")


def raw(reference: str) -> dict[str, Any]:
    """What a tag or digest names."""
    found: dict[str, Any] = json.loads(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{reference}"))
    return found


def platforms(reference: str) -> dict[str, str]:
    """Platform -> digest of its manifest."""
    entries = raw(reference)["manifests"]
    return {"/".join(entry["platform"].values()): entry["digest"] for entry in entries}


def test_images_for_several_platforms_are_pushed_under_one_tag(
    homes: list[Path], puller: Puller, name: str, tmp_path: Path
) -> None:
    fill(homes[0], {"lower": LOWER, "upper": UPPER})
    amd = puller.push(homes[0], "lower", name)  # an image alone, which becomes one of the list
    arm = puller.push(homes[0], "upper", name, platform=ARM64, into_index=True)
    assert platforms(name) == {"amd64/linux": amd.digest, "arm64/linux/v8": arm.digest}
    assert arm.index == digest_of(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{name}"))
    first, second = puller.pull(homes[1], name), puller.pull(homes[1], name, platform=parse_platform("linux/arm64"))
    assert [layer.state for layer in first.layers] == ["blocks"]
    assert [layer.state for layer in second.layers] == ["present", "blocks"]
    assert (first.digest, second.digest) == (arm.index, arm.index)
    copied = f"oci:{tmp_path}/layout:1"
    skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{name}", copied)
    assert len(json.loads(skopeo("inspect", "--raw", copied))["manifests"]) == 2
    # Again, it takes the place of what was there for its platform, and the same list is the same.
    assert puller.push(homes[0], "upper", name, platform=ARM64, into_index=True).index == arm.index
    newer = puller.push(homes[0], "upper", name, into_index=True)
    assert platforms(name) == {"amd64/linux": newer.digest, "arm64/linux/v8": arm.digest}


def test_what_others_wrote_into_a_list_of_platforms_stays(homes: list[Path], puller: Puller, name: str) -> None:
    """Fields that are not known here too; an attestation about an image goes with that."""
    fill(homes[0], {"lower": LOWER})
    repository, _, tag = name.rpartition(":")
    own = puller.push(homes[0], "lower", name)
    other = puller.push(homes[0], "lower", f"{repository}:other", platform=Platform("amd64", "windows"))
    kind = "application/vnd.oci.image.manifest.v1+json"
    windows = {
        "mediaType": kind,
        "digest": other.digest,
        "size": len(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{repository}:other")),
        "platform": {"os": "windows", "architecture": "amd64", "os.version": "10.0", "os.features": ["win32k"]},
        "urls": ["https://example.org"],
    }
    unknown = {"os": "unknown", "architecture": "unknown"}
    about = [
        {**windows, "platform": unknown, "annotations": {"vnd.docker.reference.digest": digest}}
        for digest in (own.digest, "sha256:" + 64 * "1")
    ]
    linux = {**windows, "digest": own.digest, "platform": {"os": "linux", "architecture": "amd64"}}
    about[0]["digest"] = own.digest
    index = {"schemaVersion": 2, "manifests": [linux, windows, *about]}
    host, _, path = repository.partition("/")
    httpx.put(
        f"http://{host}/v2/{path}/manifests/{tag}",
        content=json.dumps({**index, "mediaType": "application/vnd.oci.image.index.v1+json"}).encode(),
        headers={"Content-Type": "application/vnd.oci.image.index.v1+json"},
    ).raise_for_status()
    with cowfs.open_home(homes[0]) as opened:
        opened.layers.create("top", "lower")
    new = puller.push(homes[0], "top", name, into_index=True)
    entries = raw(name)["manifests"]
    assert entries[:-1] == [windows, about[1]]
    assert (entries[-1]["digest"], entries[-1]["platform"]) == (new.digest, {"architecture": "amd64", "os": "linux"})


@pytest.mark.parametrize("kind", ["artifact", "damaged"])
def test_a_tag_that_is_no_image_becomes_no_list(
    homes: list[Path], puller: Puller, registry: SmallRegistry, kind: str
) -> None:
    fill(homes[0], {"lower": LOWER})
    manifest = registry.add_image("1", [LOWER])
    if kind == "artifact":
        manifest["config"]["mediaType"] = "application/vnd.oci.empty.v1+json"
    else:
        del manifest["layers"]
    registry.add_manifest("1", manifest)
    before = registry.manifests["1"]
    with pytest.raises(BadImage, match=r"web:1 is (not an image of layers|damaged)"):
        puller.push(homes[0], "lower", f"{registry.host}/web:1", into_index=True)
    assert registry.manifests["1"] == before
