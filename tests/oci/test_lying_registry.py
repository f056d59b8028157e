"""Registries that lie, cut and refuse: one clear error, nothing half made, no secret shown."""

from __future__ import annotations

import base64
import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

import cowfs
from cowfs.errors import CowfsError, OutOfDataSpace, UsageError
from cowfs.oci.documents import BadImage
from cowfs.oci.http import RegistryError
from cowfs.oci.registry import Repository
from cowfs.oci.remote import RemoteImage
from tests.oci.conftest import SMALL, Puller, make_home, names_in, require_sound
from tests.oci.layer_archives import LOWER, UPPER, layer_archive
from tests.oci.small_registry import Handler, SmallRegistry, digest_of

BIG = layer_archive({"big": os.urandom(3 << 20)})


def blob_hook(digest: str, answer: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    """Answers GET of a blob."""
    return lambda handler: handler.command == "GET" and handler.path.endswith(digest) and answer(handler)


def refused(puller: Puller, home: Path, reference: str, error: type[CowfsError], match: str) -> str:
    """A pull that fails: the message. Nothing is in the home that was not before."""
    before = names_in(home)
    with pytest.raises(error, match=match) as raised:
        puller.pull(home, reference)
    assert names_in(home) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_download_that_is_cut_goes_on_where_it_ended(
    homes: list[Path], puller: Puller, registry: SmallRegistry
) -> None:
    registry.add_image("1", [BIG])
    cuts = [1 << 20, 2 << 20, 0]

    def cut(handler: Handler) -> bool:
        if not cuts:
            return False
        begin = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Range", f"bytes {begin}-{len(BIG) - 1}/{len(BIG)}")
        handler.send_header("Content-Length", str(len(BIG) - begin))
        handler.end_headers()
        handler.wfile.write(BIG[begin : begin + max(0, cuts.pop(0) - begin)])
        handler.cut()
        return True

    registry.before.append(blob_hook(digest_of(BIG), cut))
    pulled = puller.pull(homes[0], f"{registry.host}/web:1")
    assert pulled.downloaded_bytes == len(BIG)
    ranges = [
        headers.get("Range")
        for method, path, headers in registry.requests
        if method == "GET" and path.endswith(digest_of(BIG))
    ]
    assert ranges[0] is None
    assert ranges[-1] == f"bytes={2 << 20}-"
    assert not (homes[0] / "cowfs.downloads").exists()


def test_a_later_pull_goes_on_where_an_earlier_one_ended(
    homes: list[Path], puller: Puller, registry: SmallRegistry
) -> None:
    registry.add_image("1", [BIG])

    def cut(handler: Handler) -> bool:
        begin = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Range", f"bytes {begin}-{len(BIG) - 1}/{len(BIG)}")
        handler.send_header("Content-Length", str(len(BIG) - begin))
        handler.end_headers()
        if not begin:
            handler.wfile.write(BIG[: 1 << 20])
        handler.cut()
        return True

    registry.before.append(blob_hook(digest_of(BIG), cut))
    message = refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "breaks off each time")
    assert "the same command resumes there" in message
    registry.before.clear()
    registry.requests.clear()
    had = (homes[0] / "cowfs.downloads" / digest_of(BIG).removeprefix("sha256:")).stat().st_size
    pulled = puller.pull(homes[0], f"{registry.host}/web:1")
    assert pulled.downloaded_bytes == len(BIG) - had
    assert any(headers.get("Range") == f"bytes={had}-" for _, _, headers in registry.requests)


def test_a_registry_that_begins_anew_each_time_is_given_up(
    homes: list[Path], puller: Puller, registry: SmallRegistry
) -> None:
    registry.add_image("1", [BIG])

    def cut(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BIG)))
        handler.end_headers()
        handler.wfile.write(BIG[: 1 << 20])
        handler.cut()
        return True

    registry.before.append(blob_hook(digest_of(BIG), cut))
    refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "breaks off each time")


def test_what_another_pull_left_is_removed(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    left = homes[0] / "cowfs.downloads" / ("0" * 64)
    left.parent.mkdir()
    left.write_bytes(b"half of something")
    registry.add_image("1", [LOWER])
    puller.pull(homes[0], f"{registry.host}/web:1")
    assert not left.exists()


def test_a_beginning_that_is_damaged_is_fetched_anew(
    homes: list[Path], puller: Puller, registry: SmallRegistry
) -> None:
    left = homes[0] / "cowfs.downloads" / digest_of(BIG).removeprefix("sha256:")
    left.parent.mkdir()
    left.write_bytes(b"x" * 1000)
    registry.add_image("1", [BIG])
    assert puller.pull(homes[0], f"{registry.host}/web:1").layers[0].diff_id == digest_of(BIG)


def change_blob(registry: SmallRegistry, digest: str, data: bytes) -> None:
    registry.blobs[digest] = data


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data[:-512] + b"\1" * 512, "something else as the blob sha256:.*nothing of it was kept"),
        (lambda data: data + b"more", "bytes as the blob .*, of which its manifest says"),
        (lambda data: data[:-1024], "bytes as the blob .*, of which its manifest says"),
    ],
    ids=["digest", "longer", "shorter"],
)
def test_a_blob_that_is_another_one(
    homes: list[Path], puller: Puller, registry: SmallRegistry, change: Callable[[bytes], bytes], match: str
) -> None:
    registry.add_image("1", [LOWER, BIG])
    registry.blobs[digest_of(BIG)] = change(BIG)
    refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, match)


def test_a_blob_without_an_end(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    registry.add_image("1", [LOWER])

    def endless(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 16))
        except OSError:
            handler.close_connection = True
        return True

    registry.before.append(blob_hook(digest_of(LOWER), endless))
    refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "sends more bytes as the blob")


def test_a_manifest_without_an_end(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    def endless(handler: Handler) -> bool:
        if "/manifests/" not in handler.path:
            return False
        handler.answer(200, b" " * (5 << 20))
        return True

    registry.before.append(endless)
    refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "the manifest .* has more than 4194304 bytes")


def test_a_tag_that_is_not_there(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    message = refused(puller, homes[0], f"{registry.host}/web:2", RegistryError, "there is no tag '2'")
    assert f"{registry.host}/web" in message


def test_a_manifest_of_another_digest(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    registry.add_image("1", [LOWER])
    digest = "sha256:" + "1" * 64
    registry.manifests[digest] = registry.manifests["1"]
    refused(puller, homes[0], f"{registry.host}/web@{digest}", RegistryError, "sends another manifest than")


def edited(registry: SmallRegistry, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = registry.add_image("1", [LOWER])
    edit(manifest)
    registry.add_manifest("1", manifest)


@pytest.mark.parametrize(
    ("edit", "error", "match"),
    [
        (lambda m: m.update(schemaVersion=1), BadImage, "schema 1, which Docker no longer writes"),
        (lambda m: m.update(mediaType="text/html"), BadImage, "its media type is 'text/html'"),
        (
            lambda m: m["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json"),
            BadImage,
            "not an image of",
        ),
        (lambda m: m["layers"][0].update(mediaType="application/x-qcow2"), BadImage, "'application/x-qcow2'"),
        (lambda m: m["layers"][0].update(digest="md5:abc"), BadImage, "'md5:abc' is not a digest"),
        (lambda m: m["layers"][0].update(digest="sha256:../../../etc/passwd"), BadImage, "is not a digest"),
        (lambda m: m["layers"][0].update(size=-5), BadImage, "-5 is not a length"),
        (lambda m: m["layers"][0].update(size=1 << 60), BadImage, "bytes"),
        (lambda m: m["config"].update(size=1 << 40), BadImage, "its configuration is of 1099511627776 bytes"),
        (lambda m: m["layers"].append(m["layers"][0]), BadImage, "has 2 layers and its configuration 1 diff ids"),
        (lambda m: m.update(layers=m["layers"] * 2000), BadImage, "has 2000 layers, and 1024 is the most"),
        (lambda m: m.update(manifests=[]), BadImage, "is a manifest and an index"),
        (lambda m: m.pop("layers"), BadImage, "missing required field `layers`"),
    ],
)
def test_a_manifest_that_is_wrong(
    homes: list[Path],
    puller: Puller,
    registry: SmallRegistry,
    edit: Callable[[dict[str, Any]], object],
    error: type[CowfsError],
    match: str,
) -> None:
    edited(registry, edit)
    refused(puller, homes[0], f"{registry.host}/web:1", error, match)


def test_indexes_that_lead_in_a_circle(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    kind = "application/vnd.oci.image.index.v1+json"
    entry = {"mediaType": kind, "digest": "", "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    digest = ""
    for _ in range(6):
        entry["digest"] = digest or "sha256:" + "0" * 64
        digest = registry.add_manifest("1", {"schemaVersion": 2, "mediaType": kind, "manifests": [entry]})
    refused(puller, homes[0], f"{registry.host}/web:1", BadImage, "too many indexes")


def add_packed(registry: SmallRegistry, stored: bytes, diff_id: str, under: bytes = LOWER) -> None:
    """An image of a plain layer, and one on it that is stored as these bytes."""
    manifest = registry.add_image("1", [under], rootfs={"type": "layers", "diff_ids": [digest_of(under), diff_id]})
    manifest["layers"].append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **registry.add_blob(stored)})
    registry.add_manifest("1", manifest)


@pytest.mark.parametrize(
    ("stored", "diff_id", "error", "match"),
    [
        (gzip.compress(UPPER), digest_of(LOWER + b"x"), BadImage, "is damaged: its archive has the digest"),
        (gzip.compress(UPPER)[:-20], digest_of(UPPER), BadImage, "its compressed data does not end"),
        (gzip.compress(UPPER)[:50] + b"\0" * 50, digest_of(UPPER), BadImage, "is damaged|does not end"),
        (b"\x28\xb5\x2f\xfd" + bytes(50), digest_of(UPPER), BadImage, "is damaged"),
        (zstandard.compress(UPPER)[:-9], digest_of(UPPER), BadImage, "is damaged"),
        (b"BZh91AY" + bytes(50), digest_of(UPPER), BadImage, "compressed with bzip2"),
        (gzip.compress(b"no archive" * 200), digest_of(b"no archive" * 200), UsageError, "layer archive"),
    ],
    ids=["diff id", "cut", "garbage", "zstd", "cut zstd", "bzip2", "no tar"],
)
def test_a_layer_that_does_not_unpack_leaves_nothing(
    homes: list[Path],
    puller: Puller,
    registry: SmallRegistry,
    stored: bytes,
    diff_id: str,
    error: type[CowfsError],
    match: str,
) -> None:
    """The layer below it, which is whole, is gone too."""
    add_packed(registry, stored, diff_id)
    refused(puller, homes[0], f"{registry.host}/web:1", error, match)
    assert names_in(homes[0]) == []
    assert not list((homes[0] / "cowfs.images").glob("*"))


def test_a_layer_that_unpacks_to_far_too_much(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    """A hundred kilobytes become more than a layer of the home can be; it is noticed before that is written."""
    packer = gzip.GzipFile("", "wb", 9, out := (homes[0].parent / "bomb").open("wb"), mtime=0)
    for _ in range(200):
        packer.write(bytes(1 << 20))
    packer.close()
    out.close()
    add_packed(registry, (homes[0].parent / "bomb").read_bytes(), digest_of(b""))
    refused(puller, homes[0], f"{registry.host}/web:1", BadImage, "holds more than 96 MiB, which a layer")


def test_a_layer_that_is_compressed_by_zstd(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    add_packed(registry, zstandard.compress(UPPER), digest_of(UPPER))
    assert len(puller.pull(homes[0], f"{registry.host}/web:1").layers) == 2
    packer = zstandard.ZstdCompressor()
    bomb = packer.compress(bytes(200 << 20))
    add_packed(registry, bomb, digest_of(b""))
    refused(puller, homes[0], f"{registry.host}/web:1", BadImage, "holds more than 96 MiB, which a layer")


def test_an_archive_that_leads_out_of_the_layer(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    registry.add_image("1", [LOWER, layer_archive({"../../escaped": b"x"})])
    refused(puller, homes[0], f"{registry.host}/web:1", UsageError, "leads out of the layer")
    assert not (homes[0].parent / "escaped").exists()


def test_a_pool_that_is_too_small(puller: Puller, registry: SmallRegistry, tmp_path: Path) -> None:
    """The layer that had room is removed again, and the home works as before."""
    home = make_home(tmp_path / "small", msgspec.structs.replace(SMALL, data_size_bytes=8 << 20, min_free_percent=0))
    registry.add_image("1", [LOWER, layer_archive({"big": os.urandom(9 << 20)})])
    refused(puller, home, f"{registry.host}/web:1", OutOfDataSpace, "data block")
    registry.add_image("2", [LOWER])
    assert puller.pull(home, f"{registry.host}/web:2").layers[0].state == "archive"
    require_sound(home)


def test_a_disk_that_is_full(
    homes: list[Path], puller: Puller, registry: SmallRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_image("1", [LOWER])

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Repository, "_fetch_from", fail)
    monkeypatch.setattr(RemoteImage, "_read_config", lambda _self, blob, _where: registry.blobs[blob.digest])
    said = "cannot write the blob .*/cowfs.downloads/.*: No space left on device; .*, unless that is removed"
    refused(puller, homes[0], f"{registry.host}/web:1", CowfsError, said)


def test_an_image_without_layers(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    registry.add_image("1", [])
    assert puller.pull(homes[0], f"{registry.host}/web:1", name="empty").layers == []
    assert names_in(homes[0]) == ["empty"]
    assert puller.push(homes[0], "empty", f"{registry.host}/web:2").layers[0].name == "empty"


# ------------------------------------------------------------------ who one is


def write_config(puller: Puller, **config: object) -> None:
    puller.config.path.parent.mkdir(exist_ok=True)
    puller.config.path.write_text(json.dumps(config))


def login(puller: Puller, host: str, user: str = "me", password: str = "secret") -> None:
    write_config(puller, auths={host: {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}})


def ask_for_basic(handler: Handler) -> bool:
    if handler.basic == "me:secret":
        return False
    handler.body()
    handler.problem(401, "UNAUTHORIZED", WWW_Authenticate='Basic realm="here"')
    return True


class TokenServer:
    """Asks for tokens, and gives them to who knows the password."""

    def __init__(self, registry: SmallRegistry) -> None:
        self.registry = registry
        self.asked: list[str] = []
        registry.before.append(self)

    def __call__(self, handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            self.asked.append(handler.path)
            form = handler.body().decode()
            if handler.basic == "me:secret" or "refresh_token=identity" in form:
                handler.answer(200, b'{"token": "abc"}')
            else:
                handler.problem(401, "DENIED")
            return True
        if handler.headers.get("Authorization") == "Bearer abc":
            return False
        handler.body()
        challenge = f'Bearer realm="http://{self.registry.host}/token",service="here",scope="repository:web:pull"'
        handler.problem(401, "UNAUTHORIZED", WWW_Authenticate=challenge)
        return True


def test_a_password_is_asked_for_and_given(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    registry.add_image("1", [LOWER])
    registry.before.append(ask_for_basic)
    message = refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "wants to know who you are")
    assert f"docker login {registry.host}" in message
    login(puller, registry.host, password="wrong")
    message = refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "refuses the credentials of 'me'")
    assert "wrong" not in message
    login(puller, registry.host)
    assert puller.pull(homes[0], f"{registry.host}/web:1").layers
    with cowfs.open_home(homes[0]) as home:
        home.layers.create("mine")
    assert puller.push(homes[0], "mine", f"{registry.host}/mine:1").layers


def test_a_token_is_fetched_for_a_password_or_an_identity(
    homes: list[Path], puller: Puller, registry: SmallRegistry
) -> None:
    registry.add_image("1", [LOWER])
    server = TokenServer(registry)
    refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "wants to know who you are.*denied")
    login(puller, registry.host, password="wrong")
    refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "refuses the credentials of 'me'.*denied")
    login(puller, registry.host)
    server.asked.clear()
    assert puller.pull(homes[0], f"{registry.host}/web:1").layers
    assert server.asked == ["/token?service=here&scope=repository%3Aweb%3Apull"]
    write_config(puller, auths={registry.host: {"identitytoken": "identity"}})
    assert puller.pull(homes[1], f"{registry.host}/web:1").layers


def test_a_token_that_is_none(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    def give_nonsense(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.answer(200, b'{"token": "a\\r\\nInjected: yes"}')
            return True
        realm = f'Bearer realm="http://{registry.host}/token"'
        handler.problem(401, "UNAUTHORIZED", WWW_Authenticate=realm)
        return True

    registry.before.append(give_nonsense)
    refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "gives no token")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_gets_no_credentials(
    homes: list[Path], puller: Puller, registry: SmallRegistry, status: int
) -> None:
    """A registry sends one to where its blobs are; that place learns nothing of the password."""
    registry.add_image("1", [LOWER])
    login(puller, registry.host)
    registry.before.append(ask_for_basic)
    with SmallRegistry(blobs=registry.blobs) as store:
        registry.before.append(
            lambda handler: (
                "/blobs/" in handler.path and handler.answer(status, Location=f"http://{store.host}{handler.path}")
            )
        )
        assert puller.pull(homes[0], f"{registry.host}/web:1").layers
        assert store.requests
        assert all("Authorization" not in headers for _, _, headers in store.requests)


def test_redirects_without_an_end(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    registry.before.append(lambda handler: "/manifests/" in handler.path and handler.answer(302, Location=handler.path))
    refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "redirects again and again")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://here/x", "http://[::1"])
def test_a_redirect_to_what_is_no_address(
    homes: list[Path], puller: Puller, registry: SmallRegistry, target: str
) -> None:
    registry.before.append(lambda handler: "/manifests/" in handler.path and handler.answer(302, Location=target))
    refused(puller, homes[0], f"{registry.host}/web:1", RegistryError, "redirects to")


# ------------------------------------------------------------------ up


@pytest.fixture
def big_layer(homes: list[Path]) -> str:
    with cowfs.open_home(homes[0]) as home:
        home.layers.create("big")
        path = homes[0].parent / "big.tar"
        path.write_bytes(BIG)
        with path.open("rb") as file:
            home.layers.apply("big", file)
    return "big"


def test_an_upload_that_is_cut_goes_on_where_the_registry_is(
    homes: list[Path], puller: Puller, registry: SmallRegistry, big_layer: str
) -> None:
    cuts = [1 << 20]

    def cut(handler: Handler) -> bool:
        if handler.command != "PATCH" or not cuts:
            return False
        number = handler.path.rpartition("/")[2]
        registry.uploads[number] += handler.rfile.read(cuts.pop())
        handler.cut()
        return True

    registry.before.append(cut)
    pushed = puller.push(homes[0], big_layer, f"{registry.host}/web:1", with_blocks=False)
    assert pushed.layers[0].digest in registry.blobs
    begins = [
        headers["Content-Range"].partition("-")[0] for method, _, headers in registry.requests if method == "PATCH"
    ]
    assert begins == ["0", str(1 << 20)]


def test_an_upload_that_is_cut_each_time_leaves_the_tag(
    homes: list[Path], puller: Puller, registry: SmallRegistry, big_layer: str
) -> None:
    def cut(handler: Handler) -> bool:
        if handler.command != "PATCH":
            return False
        handler.cut()
        return True

    registry.add_image("1", [LOWER])
    before = registry.manifests["1"]
    registry.before.append(cut)
    with pytest.raises(RegistryError, match=r"the upload of blob .* breaks off each time"):
        puller.push(homes[0], big_layer, f"{registry.host}/web:1")
    assert registry.manifests["1"] == before


def test_a_push_that_is_refused(homes: list[Path], puller: Puller, registry: SmallRegistry, big_layer: str) -> None:
    registry.before.append(lambda handler: handler.command == "POST" and handler.problem(403, "DENIED"))
    with pytest.raises(RegistryError, match="refuses an upload: HTTP 403 Forbidden: denied"):
        puller.push(homes[0], big_layer, f"{registry.host}/web:1")


def test_a_busy_registry_is_waited_for(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    registry.add_image("1", [LOWER])
    left = [7, 2]

    def busy(handler: Handler) -> bool:
        if "/manifests/" not in handler.path or not left:
            return False
        handler.problem(429, "TOOMANYREQUESTS", Retry_After=str(left.pop()))
        return True

    registry.before.append(busy)
    assert puller.pull(homes[0], f"{registry.host}/web:1").layers
    assert puller.slept[:2] == [2.0, 7.0]


def test_lists_of_referrers_are_the_registry_s_where_it_keeps_them(
    homes: list[Path], puller: Puller, registry: SmallRegistry, big_layer: str
) -> None:
    registry.has_referrers = True
    assert puller.push(homes[0], big_layer, f"{registry.host}/web:1").blocks
    assert not any(name.startswith("sha256-") for name in registry.manifests)
    assert [layer.state for layer in puller.pull(homes[1], f"{registry.host}/web:1").layers] == ["blocks"]


@pytest.mark.parametrize("name", ["web", "base", "a/b", ""])
def test_a_name_that_cannot_be_is_told_before_the_registry_is_asked(
    homes: list[Path], puller: Puller, registry: SmallRegistry, name: str
) -> None:
    registry.add_image("1", [LOWER])
    with cowfs.open_home(homes[0]) as home:
        home.create("web")
    with pytest.raises(CowfsError, match=r"exists already|cannot be the name|reserved"):
        puller.pull(homes[0], f"{registry.host}/web:1", name)
    assert registry.requests == []


def test_no_registry_there(homes: list[Path], puller: Puller, registry: SmallRegistry) -> None:
    host = registry.host
    registry.server.server_close()
    message = refused(puller, homes[0], f"{host}/web:1", RegistryError, f"cannot reach http://{host}")
    assert "refused" in message.lower()


def test_blocks_that_are_damaged_are_not_used(
    homes: list[Path], puller: Puller, registry: SmallRegistry, big_layer: str
) -> None:
    """Their own digests are right, and what they hold is not: the archive is taken in their place."""
    puller.push(homes[0], big_layer, f"{registry.host}/web:1")
    (tag,) = [name for name in registry.manifests if name.startswith("sha256-")]
    index = json.loads(registry.manifests[tag][0])
    artifact = json.loads(registry.manifests[index["manifests"][0]["digest"]][0])
    changes = bytearray(gzip.decompress(registry.blobs[artifact["layers"][0]["digest"]]))
    changes[1 << 20] ^= 1
    stored = gzip.compress(bytes(changes))
    artifact["layers"][0].update(registry.add_blob(stored))
    artifact["layers"][0]["annotations"]["io.cowfs.changes.digest"] = digest_of(bytes(changes))
    index["manifests"][0]["digest"] = registry.add_manifest("blocks", artifact)
    registry.add_manifest(tag, index)
    pulled = puller.pull(homes[1], f"{registry.host}/web:1")
    assert [layer.state for layer in pulled.layers] == ["archive"]
    assert len(puller.said) == 1


def test_several_pulls_at_once(homes: list[Path], registry: SmallRegistry, tmp_path: Path) -> None:
    """Of images that share a layer, by processes that wait for each other's blobs and for the home."""
    registry.add_image("1", [LOWER, UPPER])
    registry.add_image("2", [LOWER, BIG])
    command = [sys.executable, "-m", "cowfs", "--home", str(homes[0]), "layer", "pull"]
    pulls = [
        subprocess.Popen([*command, f"{registry.host}/web:{tag}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for tag in ("1", "2", "1", "2")
    ]
    for process in pulls:
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    assert len(names_in(homes[0])) == 3
