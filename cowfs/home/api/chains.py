"""A device and its descendants written to a directory and made of it again, for Python and for the command line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

import msgspec

from cowfs.errors import CowfsError, DeviceExists, UsageError
from cowfs.home.requests.disks import RANGE_BYTES, Imported, importing
from cowfs.home.requests.images import CHANGE, Chain, ExportChain, ImportChain
from cowfs.home.session import Session
from cowfs.new_files import new_directory
from cowfs.steps import Progress, counted

_CHAIN_FILE: Final = "chain.json"
_VERSION: Final = 1


class _Written(msgspec.Struct, frozen=True):
    """What a file of blocks holds when it is whole."""

    size_bytes: int
    sha256: str


class _ChainFile(Chain, frozen=True):
    """`files`: by their names; null where an earlier version of cowfs wrote the chain, which noted none."""

    files: dict[str, _Written] | None = None


def export_chain(
    session: Session, name: str, target: str | os.PathLike[str], *, progress: Progress | None = None
) -> Chain:
    """As `Home.export_chain`."""
    path = os.path.abspath(target)
    done = 0
    try:
        with new_directory(path) as directory, ExitStack() as stack:
            current: list[IO[bytes]] = []
            hashes: dict[str, hashlib._Hash] = {}

            def take(piece: bytes) -> None:
                nonlocal done
                number = CHANGE.unpack_from(piece)[0]
                if not current or current[-1].name != _blocks(directory, number):
                    stack.close()
                    current.append(stack.enter_context(open(_blocks(directory, number), "xb")))
                current[-1].write(piece)
                hashes.setdefault(os.path.basename(current[-1].name), hashlib.sha256()).update(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, None)

            chain = session.receive(ExportChain(name), take)
            stack.close()
            files = {
                file: _Written(os.stat(os.path.join(directory, file)).st_size, digest.hexdigest())
                for file, digest in hashes.items()
            }
            document = _ChainFile(chain.devices, chain.block_bytes, chain.version, files)
            Path(directory, _CHAIN_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    except CowfsError:
        raise
    except OSError as error:
        reason = f"{error.strerror or error}; nothing was left there"
        raise CowfsError(f"cannot export '{name}' to {path}: {reason}", errno=error.errno) from error
    return chain


def import_chain(
    session: Session, source: str | os.PathLike[str], *, progress: Progress | None = None
) -> list[Imported]:
    """As `Home.import_chain`."""
    path = os.path.abspath(source)
    try:
        chain = msgspec.json.decode(Path(path, _CHAIN_FILE).read_bytes(), type=_ChainFile)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is not a chain of devices, or is damaged: {error}") from None
    except OSError as error:
        reason = f"{error.strerror}; name a directory that 'export --chain' made"
        raise CowfsError(f"cannot read {path}/{_CHAIN_FILE}: {reason}", errno=error.errno) from error
    if chain.version != _VERSION:
        raise UsageError(f"{path} is a chain of version {chain.version}, and only {_VERSION} is known; update cowfs")
    pieces = _pieces(path, len(chain.devices), chain.files)
    try:
        with importing(path):
            return session.send(
                ImportChain(Chain(chain.devices, chain.block_bytes)),
                pieces if progress is None else counted(pieces, _size_bytes(path), progress),
            )
    except DeviceExists as error:
        found = error.message.removesuffix("; choose another name")
        raise DeviceExists(
            f"cannot import {path}: {found}; rename or remove it, as a chain's devices keep their names"
        ) from None


def _size_bytes(directory: str) -> int:
    with os.scandir(directory) as entries:
        return sum(entry.stat().st_size for entry in entries)


def _pieces(path: str, count: int, files: dict[str, _Written] | None) -> Iterator[bytes]:
    for number in range(count):
        written = None if files is None else files.get(os.path.basename(_blocks(path, number)))
        if files is not None and written is None:
            continue  # a device that is as its parent is
        digest = hashlib.sha256()
        try:
            file = open(_blocks(path, number), "rb")  # noqa: SIM115
        except FileNotFoundError:
            if written is None:
                continue
            raise UsageError(f"{_blocks(path, number)} is missing; nothing was made") from None
        with file:
            while header := file.read(CHANGE.size):
                length = CHANGE.unpack(header)[3] if len(header) == CHANGE.size and header[4] else 0
                data = file.read(length) if length <= RANGE_BYTES else b""
                if len(header) != CHANGE.size or len(data) != length:
                    raise UsageError(f"{file.name} is damaged, or breaks off; nothing was made")
                digest.update(header)
                digest.update(data)
                yield header + data
            if written is not None and (file.tell(), digest.hexdigest()) != (written.size_bytes, written.sha256):
                raise UsageError(f"{file.name} is damaged, or breaks off; nothing was made")


def _blocks(directory: str, number: int) -> str:
    return os.path.join(directory, f"{number:06}.blocks")
