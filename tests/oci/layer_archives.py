"""Archives of layers, as other programs pack them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

from tests.oci.small_registry import digest_of


def layer_archive(files: dict[str, bytes | None], *, format: int = tarfile.GNU_FORMAT) -> bytes:  # noqa: A002
    """A tar archive: name -> content, None for a directory. The headers are not those that cowfs writes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in files.items():
            item = tarfile.TarInfo(name)
            item.mtime, item.uname = 1_600_000_000, "someone"
            if data is None:
                item.type, item.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(item)
            else:
                item.size = len(data)
                tar.addfile(item, io.BytesIO(data))
    return out.getvalue()


LOWER = layer_archive({"etc": None, "etc/name": b"lower\n", "etc/old": b"goes", "bin": None, "bin/tool": b"#!" * 5000})
UPPER = layer_archive({"etc": None, "etc/name": b"upper\n", "etc/.wh.old": b""})


def config_of(layers: list[bytes]) -> bytes:
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/tool"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
            "history": [{"created_by": f"step {number}"} for number in range(len(layers))],
        }
    ).encode()


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    item = tarfile.TarInfo(name)
    item.size = len(data)
    tar.addfile(item, io.BytesIO(data))


def docker_archive(path: Path, layers: list[bytes], tags: list[str]) -> bytes:
    """An archive as `docker save` wrote it before it wrote OCI layouts; its configuration. Equal layers are links."""
    config = config_of(layers)
    with tarfile.open(path, "w") as tar:
        names: list[str] = []
        for number, layer in enumerate(layers):
            names.append(f"{number:064x}/layer.tar")
            if layer in layers[:number]:
                link = tarfile.TarInfo(names[-1])
                link.type, link.linkname = tarfile.SYMTYPE, f"../{layers.index(layer):064x}/layer.tar"
                tar.addfile(link)
            else:
                add_file(tar, names[-1], layer)
        name = f"{digest_of(config).removeprefix('sha256:')}.json"
        add_file(tar, name, config)
        add_file(tar, "manifest.json", json.dumps([{"Config": name, "RepoTags": tags, "Layers": names}]).encode())
    return config


def layout(path: Path, layers: list[bytes], tag: str) -> bytes:
    """An OCI layout whose layers are compressed; its configuration."""
    config = config_of(layers)
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, kind: str) -> dict[str, object]:
        (blobs / digest_of(data).removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest_of(data), "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "config": add(config, "config.v1+json"),
        "layers": [add(gzip.compress(layer), "layer.v1.tar+gzip") for layer in layers],
    }
    entry = add(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return config
