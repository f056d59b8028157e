"""The layers of a home, for Python and for the command line, here or through the holder."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, Final

import msgspec

from cowfs.errors import HomeError
from cowfs.home.control.passed_file import may_be_read
from cowfs.home.own_session import OwnSession
from cowfs.home.requests.layers import (
    ApplyLayer,
    CreateLayer,
    GetLayer,
    Info,
    LayerChange,
    LayerChanges,
    LayerDiff,
    LayerExists,
    LayerMetadata,
    LayerSize,
    ListLayers,
    PutLayer,
    RemoveLayer,
    write_with_holes,
)
from cowfs.home.requests.new_layers import LayerBlocks, LayerSeal, MakeLayer, MakeLayerOfBlocks, ReadLayerBlocks
from cowfs.home.requests.request import Attachment, documented_by
from cowfs.layers.info import DriverInfo

_PIECE_BYTES: Final = 1 << 20


class Layers:
    """Layers of a home: devices whose files are a directory `rootfs`, with tar archives of what they changed.

    Example:
        >>> import cowfs, io, tarfile, tempfile
        >>> archive = io.BytesIO()
        >>> with tarfile.open(fileobj=archive, mode="w") as tar:
        ...     tar.addfile(tarfile.TarInfo("hello"))
        >>> directory = tempfile.TemporaryDirectory()
        >>> options = cowfs.HomeOptions(data_size_bytes=1 << 30, metadata_size_bytes=4 << 20, base_size_bytes=64 << 20)
        >>> with cowfs.open_home(directory.name + "/home", create=True, options=options) as home:
        ...     home.layers.create("one")
        ...     _ = archive.seek(0)
        ...     _ = home.layers.apply("one", archive)
        ...     home.layers.create("two", "one")
        ...     print(list(home.layers.changes("one")), list(home.layers.changes("two", "one")))
        [LayerChange(kind='A', path='/hello')] []
        >>> directory.cleanup()
    """

    def __init__(self, session: OwnSession) -> None:
        self._session = session

    @documented_by(CreateLayer)
    def create(self, layer_id: str, parent: str | None = None, options: Mapping[str, str] | None = None) -> None:
        self._session.call(CreateLayer(layer_id, parent, dict(options or {})))

    @documented_by(RemoveLayer)
    def remove(self, layer_id: str) -> None:
        self._session.call(RemoveLayer(layer_id))

    @documented_by(LayerExists)
    def exists(self, layer_id: str) -> bool:
        return self._session.call(LayerExists(layer_id))

    @documented_by(ListLayers)
    def list(self) -> Iterator[str]:
        return iter(self._session.read_all(ListLayers()))

    @documented_by(LayerMetadata)
    def metadata(self, layer_id: str) -> dict[str, str]:
        return self._session.call(LayerMetadata(layer_id))

    @documented_by(LayerChanges)
    def changes(self, layer_id: str, parent: str | None = None) -> Iterator[LayerChange]:
        return iter(self._session.read_all(LayerChanges(layer_id, parent)))

    def diff(self, layer_id: str, parent: str | None = None, *, sparse: bool = False) -> IO[bytes]:
        """The changes as a tar archive, in a file without a name that the caller closes.

        Args:
            sparse: files with holes as sparse entries; `apply` and tar programs read them, Docker's layer store does
                not. Else the archive has zeros for them, where the file itself has holes.
        """
        return os.fdopen(self._session.call(LayerDiff(layer_id, parent, sparse or msgspec.UNSET)).fd, "rb")

    @documented_by(LayerSize)
    def size(self, layer_id: str, parent: str | None = None) -> int:
        return self._session.call(LayerSize(layer_id, parent))

    @documented_by(ApplyLayer)
    def apply(self, layer_id: str, archive: IO[bytes]) -> int:
        with as_file(archive, self._session.path, is_held=self._session.holder_pid is not None) as file:
            return self._session.call(ApplyLayer(layer_id, archive=Attachment(file)))

    @documented_by(MakeLayer)
    def make(self, layer_id: str, parent: str | None, archive: IO[bytes], *, end_required: bool = True) -> int:
        with as_file(archive, self._session.path, is_held=self._session.holder_pid is not None) as file:
            return self._session.call(MakeLayer(layer_id, parent, end_required, archive=Attachment(file)))

    @documented_by(ReadLayerBlocks)
    def read_blocks(self, layer_id: str, parent: str | None, take: Callable[[bytes], object]) -> LayerBlocks:
        return self._session.receive(ReadLayerBlocks(layer_id, parent), take)

    @documented_by(MakeLayerOfBlocks)
    def make_of_blocks(
        self, layer_id: str, parent: str | None, size_bytes: int, archive_digest: str, changes: Iterable[bytes]
    ) -> None:
        self._session.send(MakeLayerOfBlocks(layer_id, parent, size_bytes, archive_digest), changes)

    @documented_by(LayerSeal)
    def seal(self, layer_id: str) -> str:
        return self._session.call(LayerSeal(layer_id))

    @documented_by(GetLayer)
    def get(self, layer_id: str, mount_label: str = "") -> str:
        return self._session.call(GetLayer(layer_id, mount_label))

    @documented_by(PutLayer)
    def put(self, layer_id: str) -> None:
        self._session.call(PutLayer(layer_id))

    @documented_by(Info)
    def info(self) -> DriverInfo:
        return self._session.call(Info())


@contextmanager
def as_file(
    archive: IO[bytes], directory: os.PathLike[str], *, is_held: bool = True, called: str = "the archive"
) -> Iterator[IO[bytes]]:
    """An archive as a regular file that the holder of the home can read; copied where it is something else.

    The copy has holes where there are pieces of zeros.

    Args:
        directory: the home's.
        is_held: by another process, which does not read what may be on its own mount.
        called: the archive, in the message of an error.

    Raises:
        OSError: it cannot be read.
        HomeError: it cannot be copied into `directory`.
    """
    try:
        fd = archive.fileno()
        is_readable = may_be_read(fd, directory) if is_held else stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:  # nothing with a descriptor
        is_readable = False
    if is_readable:
        yield archive
        return
    with ExitStack() as stack:
        with _copying_into(directory):
            copy = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        while piece := _read_piece(archive, called):
            with _copying_into(directory):
                write_with_holes(copy, piece)
        with _copying_into(directory):
            copy.truncate()
            copy.seek(0)
        yield copy


def _read_piece(archive: IO[bytes], called: str) -> bytes:
    try:
        return archive.read(_PIECE_BYTES)
    except OSError as error:
        raise OSError(error.errno, error.strerror, called) from error


@contextmanager
def _copying_into(directory: os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HomeError(
            f"cannot keep a copy of what is read in the home {os.fspath(directory)}: {error.strerror or error}",
            errno=error.errno,
        ) from error
