"""The layers of a home, for Python and for the command line, whoever holds the home."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO

from cowfs.errors import HomeError
from cowfs.host.requests.layers import (
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
)
from cowfs.host.requests.request import Attachment
from cowfs.host.session import Session
from cowfs.layers.info import DriverInfo


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

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, layer_id: str, parent: str | None = None, options: Mapping[str, str] | None = None) -> None:
        """A layer: a snapshot of `parent`, or of the base device.

        Args:
            options: `size` alone is known.

        Raises:
            UsageError, DeviceExists, UnknownDevice, OutOfDataSpace, OutOfMetadataSpace.
        """
        self._session.call(CreateLayer(layer_id, parent, dict(options or {})))

    def remove(self, layer_id: str) -> None:
        """Remove a layer; one that is not there is no error. A busy one is marked and goes when it is free."""
        self._session.call(RemoveLayer(layer_id))

    def exists(self, layer_id: str) -> bool:
        return self._session.call(LayerExists(layer_id))

    def list(self) -> Iterator[str]:
        """Ids in order."""
        return self._session.iterate(ListLayers())

    def metadata(self, layer_id: str) -> dict[str, str]:
        """`DeviceId`, `DeviceName`, `DeviceSize` in bytes. Raises UnknownDevice."""
        return self._session.call(LayerMetadata(layer_id))

    def changes(self, layer_id: str, parent: str | None = None) -> Iterator[LayerChange]:
        """What differs from `parent`, or from nothing, by path."""
        return self._session.iterate(LayerChanges(layer_id, parent))

    def diff(self, layer_id: str, parent: str | None = None) -> IO[bytes]:
        """The changes as a tar archive, in a file without a name that the caller closes."""
        return os.fdopen(self._session.call(LayerDiff(layer_id, parent)).fd, "rb")

    def size(self, layer_id: str, parent: str | None = None) -> int:
        """Bytes of the files that a layer added or modified, hard-linked ones once."""
        return self._session.call(LayerSize(layer_id, parent))

    def apply(self, layer_id: str, archive: IO[bytes]) -> int:
        """Unpack a tar archive, uncompressed, into a layer: all of it or nothing, unless the layer is in use.

        Returns:
            The sum of the sizes in it.

        Raises:
            UsageError: an archive that is damaged, or reaches out of the layer.
        """
        with as_file(archive, self._session.path) as file:
            return self._session.call(ApplyLayer(layer_id, archive=Attachment(file)))

    def get(self, layer_id: str, mount_label: str = "") -> str:
        """The path of a layer's files, there until as many `put`.

        Needs a process that serves the home; where the kernel mounts layers, this one will do until it closes the home.
        """
        return self._session.call(GetLayer(layer_id, mount_label))

    def put(self, layer_id: str) -> None:
        self._session.call(PutLayer(layer_id))

    def info(self) -> DriverInfo:
        """The figures that `docker info` shows of a driver; `cowfs.layers.info.status_items` makes its text."""
        return self._session.call(Info())


@contextmanager
def as_file(archive: IO[bytes], directory: os.PathLike[str]) -> Iterator[IO[bytes]]:
    """An archive as a regular file, which another process can read too; copied where it is something else.

    Raises:
        HomeError: it cannot be copied into `directory`, the home's.
    """
    try:
        is_file = stat.S_ISREG(os.fstat(archive.fileno()).st_mode)
    except OSError:  # nothing with a descriptor
        is_file = False
    if is_file:
        yield archive
        return
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(tempfile.TemporaryFile(dir=directory))
            shutil.copyfileobj(archive, copy, 1 << 20)
            copy.seek(0)
        except OSError as error:
            raise HomeError(
                f"cannot keep a copy of the archive in the home {os.fspath(directory)}: {error.strerror or error}",
                errno=error.errno,
            ) from error
        yield copy
