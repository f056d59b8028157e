"""Docker's graph-driver plugin protocol: JSON requests over HTTP, translated into requests to a home.

    POST /Plugin.Activate                              {"Implements": ["GraphDriver"]}
    POST /GraphDriver.Create {"ID", "Parent", ...}     {"Err": ""}
    POST /GraphDriver.Diff {"ID", "Parent"}            a tar archive
    POST /GraphDriver.ApplyDiff?id=..&parent=..        a tar archive in, {"Size": n} out

Every failure is an answer with `Err`, one line; for a Diff, which is not JSON, the status says so.

Source: moby's `daemon/graphdriver/proxy.go` and its documentation of the protocol.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
import trio

from cowfs.docker.plugin.http import CLIENT_FAILURES, Request, Response, TooLarge, serve_connection
from cowfs.error_record import plain_text
from cowfs.errors import CowfsError, UsageError
from cowfs.forking import close_in_children, close_socket
from cowfs.home.executor import Executor
from cowfs.home.requests.layers import (
    ApplyLayer,
    CreateLayer,
    GetLayer,
    Info,
    LayerArchive,
    LayerChange,
    LayerChanges,
    LayerExists,
    LayerMetadata,
    LayerSize,
    PutAllLayers,
    PutLayer,
    RemoveLayer,
)
from cowfs.home.requests.request import Attachment
from cowfs.home.requests.request import Request as HomeRequest
from cowfs.layers import ChangeKind, IdMaps, IdRange
from cowfs.layers.info import status_items
from cowfs.layers.options.values import MAX_UINT32

_log = logging.getLogger(__name__)
_JSON_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"
_TAR_TYPE: Final = "application/x-tar"

R = TypeVar("R")
M = TypeVar("M", bound=msgspec.Struct)


class Call(msgspec.Struct, frozen=True):
    """What most calls say. `parent` is empty for none."""

    id: str = msgspec.field(name="ID", default="")
    parent: str = msgspec.field(name="Parent", default="")
    mount_label: str = msgspec.field(name="MountLabel", default="")
    storage_options: dict[str, str] | None = msgspec.field(name="StorageOpt", default=None)


_Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_UINT32)]


class IdMapping(msgspec.Struct, frozen=True):
    container_id: _Id
    host_id: _Id
    size: _Id


class Init(msgspec.Struct, frozen=True):
    """What the daemon says once, before anything else: `home` is where it would keep the files."""

    home: str = msgspec.field(name="Home", default="")
    options: list[str] | None = msgspec.field(name="Opts", default=None)
    uid_maps: list[IdMapping] | None = msgspec.field(name="UIDMaps", default=None)
    gid_maps: list[IdMapping] | None = msgspec.field(name="GIDMaps", default=None)

    def maps(self) -> IdMaps:
        def ranges(mappings: list[IdMapping] | None) -> tuple[IdRange, ...]:
            return tuple(IdRange(item.container_id, item.host_id, item.size) for item in mappings or ())

        return IdMaps(ranges(self.uid_maps), ranges(self.gid_maps))


Answer: TypeAlias = dict[str, object]


class GraphDriverPlugin:
    """Answers the daemon's requests: each is translated into a request to the home, which its executor runs.

    Args:
        executor: of the home. Raises HomeError while there is none, before `initialise`.
        initialise: a daemon has started, and says how it wants the home.
        spool_directory: where archives wait on their way in.
    """

    def __init__(
        self, executor: Callable[[], Executor], initialise: Callable[[Init], Awaitable[None]], spool_directory: Path
    ) -> None:
        self._executor = executor
        self._initialise = initialise
        self._spool_directory = spool_directory

    async def serve_client(self, stream: trio.SocketStream) -> None:
        close_in_children(stream.socket, close_socket)
        await serve_connection(stream, self.answer)

    async def answer(self, request: Request) -> Response:
        if request.path == "/Plugin.Activate":
            return _json({"Implements": ["GraphDriver"]})
        name = request.path.removeprefix("/GraphDriver.")
        try:
            if name == "Diff":
                return await self._diff(await _decoded(request, Call))
            if name == "ApplyDiff":
                return _json(await self._apply(request))
            if name == "Init":
                await self._initialise(await _decoded(request, Init))
                return _json({})
            if name == request.path or name not in (*_REQUESTS, *_OTHERS):
                return _json({"Err": f"no such request: {request.path}"}, status=404)
            return _json(await self._call(name, await _decoded(request, Call)))
        except CLIENT_FAILURES:
            raise
        except Exception as error:
            return _json({"Err": _explain(name, error)}, status=500 if name == "Diff" else 200)

    async def _call(self, name: str, call: Call) -> Answer:
        if name == "Capabilities":
            return {"Capabilities": {"ReproducesExactDiffs": False}}
        if name == "Status":
            return {"Status": status_items(await self._run(Info()))}
        if name == "Changes":
            async with aclosing(self._executor().pieces(LayerChanges(call.id, call.parent or None))) as changes:
                return {"Changes": [_change(change) async for change in changes]}
        translate, answered_as = _REQUESTS[name]
        answer = await self._run(translate(call))
        return {answered_as: answer} if answered_as else {}

    async def _diff(self, call: Call) -> Response:
        pieces = self._executor().pieces(LayerArchive(call.id, call.parent or None))
        first = await anext(pieces, b"")  # what fails at once is said in the answer's status
        return Response(200, _TAR_TYPE, _with_first(first, pieces))

    async def _apply(self, request: Request) -> Answer:
        # On disk, so that the home is not tied to the client's pace.
        with tempfile.TemporaryFile(dir=self._spool_directory) as spool:
            async for part in request.body:
                spool.write(part)
            spool.seek(0)
            # Docker takes layers without an end, and there are some; that the request is whole says HTTP.
            layer = ApplyLayer(request.query.get("id", ""), as_docker=True, archive=Attachment(spool))
            return {"Size": await self._run(layer)}

    async def _run(self, request: HomeRequest[R]) -> R:
        return await self._executor().answer(request)


def _create(call: Call) -> CreateLayer:
    return CreateLayer(call.id, call.parent or None, call.storage_options or {})


# What each request of the daemon is to the home, and the key of its answer.
_REQUESTS: Final[dict[str, tuple[Callable[[Call], HomeRequest[Any]], str]]] = {
    "Create": (_create, ""),
    "CreateReadWrite": (_create, ""),
    "Remove": (lambda call: RemoveLayer(call.id), ""),
    "Get": (lambda call: GetLayer(call.id, call.mount_label), "Dir"),
    "Put": (lambda call: PutLayer(call.id), ""),
    "Exists": (lambda call: LayerExists(call.id), "Exists"),
    "GetMetadata": (lambda call: LayerMetadata(call.id), "Metadata"),
    "DiffSize": (lambda call: LayerSize(call.id, call.parent or None), "Size"),
    "Cleanup": (lambda _call: PutAllLayers(), ""),
}
_OTHERS: Final = ("Capabilities", "Status", "Changes")


async def _with_first(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """An archive as the client takes it; what it reads is closed at the end, also when the client leaves."""
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _change(change: LayerChange) -> dict[str, object]:
    """As Docker has it; in a path, bytes that are not UTF-8 are replaced, as Go's encoder does."""
    path = os.fsencode(change.path).decode(errors="replace")
    return {"Path": path, "Kind": int(ChangeKind.of_letter(change.kind))}


async def _decoded(request: Request, kind: type[M]) -> M:
    try:
        return msgspec.json.decode(await request.read_body() or b"{}", type=kind)
    except TooLarge:
        raise UsageError(f"{request.path}: the request is longer than a request can be", errno=errno.EMSGSIZE) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{request.path}: not a request of the protocol: {error}") from None


def _explain(name: str, error: Exception) -> str:
    if isinstance(error, CowfsError):
        return plain_text(error.message)
    if isinstance(error, OSError) and error.errno:
        return f"{name}: {error.strerror}"
    _log.exception("%s failed unexpectedly", name)
    return f"{name}: a defect of cowfs: {type(error).__name__}: {error}"


def _json(answer: dict[str, Any], *, status: int = 200) -> Response:
    return Response(status, _JSON_TYPE, msgspec.json.encode(answer))
