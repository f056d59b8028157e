"""A registry in a thread, as small as it can be, that does what a test tells it to: lie, cut, ask who one is.

A test changes what it holds (`blobs`, `manifests`) and hooks into its answers (`before`), by method and path.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Hook = Callable[["Handler"], bool]
"""Answers a request, or leaves it to the registry by returning False."""


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class SmallRegistry:
    """Use it as a context manager.

    Attributes:
        requests: (method, path, headers) of all that came.
        before: called with each request, one after the other, until one has answered.
        has_referrers: whether it keeps lists of referrers.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    before: list[Hook] = field(default_factory=list)
    has_referrers: bool = False

    def __enter__(self) -> Self:
        handler = type("BoundHandler", (Handler,), {"registry": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    @property
    def host(self) -> str:
        return f"localhost:{self.server.server_address[1]}"

    def add_blob(self, data: bytes) -> dict[str, Any]:
        self.blobs[digest_of(data)] = data
        return {"digest": digest_of(data), "size": len(data)}

    def add_image(self, tag: str, layers: list[bytes], **config: object) -> dict[str, Any]:
        """An image of uncompressed layers; its manifest."""
        document = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
            **config,
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                **self.add_blob(json.dumps(document).encode()),
            },
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", **self.add_blob(layer)} for layer in layers
            ],
        }
        self.add_manifest(tag, manifest)
        return manifest

    def add_manifest(self, tag: str, manifest: dict[str, Any]) -> str:
        data = json.dumps(manifest).encode()
        for name in (tag, digest_of(data)):
            self.manifests[name] = data, manifest.get("mediaType", "application/json")
        return digest_of(data)

    def paths(self, method: str) -> list[str]:
        return [path for found, path, _ in self.requests if found == method]


class Handler(BaseHTTPRequestHandler):
    registry: SmallRegistry
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _handle(self) -> None:
        self.registry.requests.append((self.command, self.path, dict(self.headers)))
        if any(hook(self) for hook in list(self.registry.before)):
            return
        path = urlsplit(self.path).path
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, path):
                method(self, *found.groups())
                return
        self.answer(404)

    def answer(self, status: int, data: bytes = b"", **headers: str) -> bool:
        """Answer; True, as a hook that has done so returns."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        return True

    def problem(self, status: int, code: str, **headers: str) -> bool:
        return self.answer(
            status, json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode(), **headers
        )

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def cut(self) -> None:
        """End the connection."""
        self.close_connection = True
        self.connection.shutdown(2)

    @property
    def basic(self) -> str:
        """`USER:PASSWORD` of the request, empty without."""
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        return base64.b64decode(value).decode() if scheme == "Basic" else ""

    def root(self) -> None:
        self.answer(200, b"{}")

    def manifest(self, _name: str, wanted: str) -> None:
        if self.command == "PUT":
            data = self.body()
            kind = self.headers["Content-Type"]
            for key in (wanted, digest_of(data)):
                self.registry.manifests[key] = data, kind
            known = self.registry.has_referrers and b'"subject"' in data
            self.answer(201, Docker_Content_Digest=digest_of(data), OCI_Subject="yes" if known else "")
        elif wanted in self.registry.manifests:
            data, kind = self.registry.manifests[wanted]
            self.answer(200, data, Content_Type=kind)
        else:
            self.problem(404, "MANIFEST_UNKNOWN")

    def referrers(self, _name: str, digest: str) -> None:
        if not self.registry.has_referrers:
            self.problem(404, "NOT_FOUND")
            return
        found = []
        for name, (data, kind) in self.registry.manifests.items():
            document = json.loads(data)
            if name.startswith("sha256:") and document.get("subject", {}).get("digest") == digest:
                kinds = {"artifactType": document["artifactType"], "mediaType": kind}
                found.append({**kinds, "digest": name, "size": len(data)})
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": found}
        self.answer(200, json.dumps(index).encode(), Content_Type="application/vnd.oci.image.index.v1+json")

    def blob(self, _name: str, digest: str) -> None:
        data = self.registry.blobs.get(digest)
        if data is None:
            self.problem(404, "BLOB_UNKNOWN")
        elif found := re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range", "")):
            begin = int(found[1])
            self.answer(206, data[begin:], Content_Range=f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            self.answer(200, data)

    def begin_upload(self, name: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "mount" in query and query["mount"][0] in self.registry.blobs:
            self.answer(201)
            return
        number = uuid.uuid4().hex
        self.registry.uploads[number] = bytearray()
        self.answer(202, Location=f"/v2/{name}/blobs/uploads/{number}")

    def upload(self, name: str, number: str) -> None:
        if number not in self.registry.uploads:
            self.problem(404, "BLOB_UPLOAD_UNKNOWN")
            return
        got = self.registry.uploads[number]
        if self.command in ("PATCH", "PUT"):
            begin = self.headers.get("Content-Range", "").partition("-")[0]
            if begin and int(begin) != len(got):
                self.problem(416, "RANGE_INVALID")
                return
            got += self.body()
        state = {"Location": f"/v2/{name}/blobs/uploads/{number}", "Range": f"0-{max(len(got) - 1, 0)}"}
        if self.command == "PUT":
            digest = parse_qs(urlsplit(self.path).query)["digest"][0]
            if digest_of(bytes(got)) != digest:
                self.problem(400, "DIGEST_INVALID")
                return
            self.registry.blobs[digest] = bytes(got)
            self.answer(201)
        else:
            self.answer(202 if self.command == "PATCH" else 204, b"", **state)


ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/v2/", Handler.root),
    (r"/v2/(.+)/manifests/([^/]+)", Handler.manifest),
    (r"/v2/(.+)/referrers/([^/]+)", Handler.referrers),
    (r"/v2/(.+)/blobs/uploads/", Handler.begin_upload),
    (r"/v2/(.+)/blobs/uploads/([^/]+)", Handler.upload),
    (r"/v2/(.+)/blobs/([^/]+)", Handler.blob),
]
