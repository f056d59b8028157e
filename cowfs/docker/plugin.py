"""Docker's graph-driver plugin protocol: JSON requests over HTTP, answered by a `Driver`.

    POST /Plugin.Activate                              {"Implements": ["GraphDriver"]}
    POST /GraphDriver.Create {"ID", "Parent", ...}     {"Err": ""}
    POST /GraphDriver.Diff {"ID", "Parent"}            a tar archive
    POST /GraphDriver.ApplyDiff?id=..&parent=..        a tar archive in, {"Size": n} out

Every failure is an answer with `Err`, one line; for a Diff, which is no JSON, the status says so. A driver's call is
synchronous and so seen whole by every other client; long ones take turns between their steps.

Source: moby's `daemon/graphdriver/proxy.go` and its documentation of the protocol.
"""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import IO, Annotated, Any, Final, Protocol, TypeAlias, TypeVar

import msgspec
import trio

from cowfs.docker.http import CLIENT_FAILURES, Request, Response, TooLarge, serve_connection
from cowfs.error_record import plain_text
from cowfs.errors import CowfsError, UsageError
from cowfs.layers import Driver, IdMaps, IdRange, Steps
from cowfs.layers.options.values import MAX_UINT32

_log = logging.getLogger(__name__)
JSON_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"
TAR_TYPE: Final = "application/x-tar"

T = TypeVar("T")
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


class Served(Protocol):
    """The driver with what belongs around it where waiting is allowed."""

    async def initialise(self, init: Init) -> None:
        """Make the driver ready, or check that it is what the daemon asks for now."""
        ...

    @property
    def driver(self) -> Driver:
        """Raises HomeError before `initialise`."""
        ...

    async def quiesce(self, layer_id: str) -> None:
        """Bring what applications wrote to a layer's files into it; ends without a checkpoint."""
        ...

    async def let_go(self, layer_id: str) -> None:
        """Close a layer's files if nobody uses them."""
        ...

    async def forget(self, layer_id: str) -> None:
        """Let the kernel drop what it has cached of a layer's files, after they changed underneath or were put."""
        ...

    @property
    def spool_directory(self) -> Path:
        """Where archives wait on their way in."""
        ...


Answer: TypeAlias = dict[str, object]
Method: TypeAlias = Callable[["GraphDriverPlugin", Call], Awaitable[Answer]]


async def drive(steps: Steps[T]) -> T:
    """Run a long operation, letting others have a turn after each step."""
    try:
        while True:
            next(steps)
            await trio.lowlevel.checkpoint()
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


class GraphDriverPlugin:
    """Answers the daemon's requests with a driver."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def serve_client(self, stream: trio.SocketStream) -> None:
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
                await self._served.initialise(await _decoded(request, Init))
                return _json({})
            method = _METHODS.get(name) if name != request.path else None
            if method is None:
                return _json({"Err": f"no such request: {request.path}"}, status=404)
            return _json(await method(self, await _decoded(request, Call)))
        except CLIENT_FAILURES:
            raise
        except Exception as error:
            return _json({"Err": _explain(name, error)}, status=500 if name == "Diff" else 200)

    @property
    def _driver(self) -> Driver:
        return self._served.driver

    async def _create(self, call: Call) -> Answer:
        if call.parent:
            await self._served.quiesce(call.parent)
        self._driver.create(call.id, call.parent or None, call.storage_options)
        return {}

    async def _remove(self, call: Call) -> Answer:
        await self._served.let_go(call.id)
        self._driver.remove(call.id)
        return {}

    async def _get(self, call: Call) -> Answer:
        return {"Dir": self._driver.get(call.id, call.mount_label)}

    async def _put(self, call: Call) -> Answer:
        self._driver.put(call.id)
        await self._served.let_go(call.id)
        return {}

    async def _exists(self, call: Call) -> Answer:
        return {"Exists": self._driver.exists(call.id)}

    async def _status(self, _call: Call) -> Answer:
        return {"Status": [list(item) for item in self._driver.status()]}

    async def _metadata(self, call: Call) -> Answer:
        return {"Metadata": self._driver.metadata(call.id)}

    async def _changes(self, call: Call) -> Answer:
        await self._served.quiesce(call.id)
        changes = await drive(self._driver.changes(call.id, call.parent or None))
        return {"Changes": [{"Path": _text(change.path), "Kind": int(change.kind)} for change in changes]}

    async def _diff_size(self, call: Call) -> Answer:
        await self._served.quiesce(call.id)
        return {"Size": await drive(self._driver.diff_size(call.id, call.parent or None))}

    async def _cleanup(self, _call: Call) -> Answer:
        self._driver.cleanup()
        return {}

    async def _capabilities(self, _call: Call) -> Answer:
        return {"Capabilities": {"ReproducesExactDiffs": False}}

    async def _diff(self, call: Call) -> Response:
        await self._served.quiesce(call.id)
        pieces = self._driver.diff(call.id, call.parent or None)
        first = next(pieces, b"")  # what fails at once is said in the answer's status
        return Response(200, TAR_TYPE, _pieces(first, pieces))

    async def _apply(self, request: Request) -> Answer:
        layer_id, parent = request.query.get("id", ""), request.query.get("parent", "")
        # On disk, so that the home is not tied to the client's pace.
        with tempfile.TemporaryFile(dir=self._served.spool_directory) as spool:
            async for part in request.body:
                spool.write(part)
            spool.seek(0)
            await self._served.let_go(layer_id)
            size_bytes = await drive(self._apply_steps(layer_id, parent, spool))
        await self._served.forget(layer_id)
        return {"Size": size_bytes}

    def _apply_steps(self, layer_id: str, parent: str, archive: IO[bytes]) -> Steps[int]:
        # Docker takes layers without an end, and there are some; that the request is whole says HTTP.
        return self._driver.apply(layer_id, parent or None, archive, end_required=False)


_METHODS: Final[dict[str, Method]] = {
    "Create": GraphDriverPlugin._create,
    "CreateReadWrite": GraphDriverPlugin._create,
    "Remove": GraphDriverPlugin._remove,
    "Get": GraphDriverPlugin._get,
    "Put": GraphDriverPlugin._put,
    "Exists": GraphDriverPlugin._exists,
    "Status": GraphDriverPlugin._status,
    "GetMetadata": GraphDriverPlugin._metadata,
    "Cleanup": GraphDriverPlugin._cleanup,
    "Changes": GraphDriverPlugin._changes,
    "DiffSize": GraphDriverPlugin._diff_size,
    "Capabilities": GraphDriverPlugin._capabilities,
}


async def _pieces(first: bytes, rest: Generator[bytes, None, object]) -> AsyncGenerator[bytes, None]:
    """An archive as the client takes it; the layers it reads are let go of at the end, also when the client leaves."""
    try:
        yield first
        for piece in rest:
            yield piece
            await trio.lowlevel.checkpoint()
    finally:
        rest.close()


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


def _text(path: bytes) -> str:
    """A path in JSON: the bytes that are no UTF-8 are replaced, as Go's encoder does."""
    return path.decode(errors="replace")


def _json(answer: dict[str, Any], *, status: int = 200) -> Response:
    return Response(status, JSON_TYPE, msgspec.json.encode(answer))
