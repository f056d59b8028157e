"""Directories and tar archives that become devices, and devices that become archives."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import IO, Final

from cowfs.blockdev import FileDevice
from cowfs.copying.host import HostSource, total_bytes
from cowfs.copying.records import batches
from cowfs.home.api.layers import as_file
from cowfs.home.requests.devices import Inspect
from cowfs.home.requests.disks import Exported, Imported
from cowfs.home.requests.images import ExportArchive, ImportArchive, ImportFiles
from cowfs.home.requests.request import Attachment
from cowfs.home.session import Session
from cowfs.steps import Progress, counted, pieces_of

_WATCH_SECONDS: Final = 0.1


def import_directory(
    session: Session, path: str, name: str, size_bytes: int | None, progress: Progress | None
) -> Imported:
    source = os.fsencode(path)
    with closing(HostSource().read(source, b".")) as records:
        pieces = pieces_of(batches(records))
        sent = pieces if progress is None else counted(pieces, total_bytes(source), progress)
        copied = session.send(ImportFiles(name, size_bytes), sent)
    report = session.call(Inspect(name))
    return Imported(name, report.id, report.size_bytes, report.mapped_bytes, copied.problems)


def import_archive(
    session: Session, path: str, name: str, size_bytes: int | None, progress: Progress | None
) -> Imported:
    with open(path, "rb") as archive, as_file(archive, session.path) as file, _watched(file, progress):
        return session.call(ImportArchive(name, size_bytes, archive=Attachment(file)))


@contextmanager
def _watched(file: IO[bytes], progress: Progress | None) -> Iterator[None]:
    """Say how far a file has been read, by this process or by one that has it from here: they share its position."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        fd = file.fileno()
        while not ended.wait(_WATCH_SECONDS):
            progress(os.lseek(fd, 0, os.SEEK_CUR), os.fstat(fd).st_size)

    thread = threading.Thread(target=watch, name="progress of an archive")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def export_archive(session: Session, name: str, file: FileDevice, progress: Progress | None) -> Exported:
    done = 0

    def take(piece: bytes) -> None:
        nonlocal done
        file.pwrite(done, piece)
        done += len(piece)
        if progress is not None:
            progress(done, None)

    return session.receive(ExportArchive(name), take)
