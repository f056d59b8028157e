"""The JSON documents of a daemon as structures: what is used of them; other keys are kept in the bytes alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cowfs.errors import HomeError

_MAX_BYTES: Final = 64 << 20
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

D = TypeVar("D")


class RootFs(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: list[str] = []


class HistoryEntry(msgspec.Struct, frozen=True):
    created: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False


class ContainerSettings(msgspec.Struct, frozen=True, rename="pascal"):
    """Of a container, and of an image the defaults for it."""

    image: str = ""
    cmd: list[str] | None = None
    entrypoint: list[str] | str | None = None


class ImageDocument(msgspec.Struct, frozen=True):
    """`imagedb/content/sha256/ID`: its digest is the image's id."""

    architecture: str = ""
    os: str = ""
    created: str = ""
    config: ContainerSettings | None = None
    rootfs: RootFs = RootFs()
    history: list[HistoryEntry] = []


class RepositoriesDocument(msgspec.Struct, frozen=True, rename="pascal"):
    """`repositories.json`: repository -> reference (`name:tag` or `name@digest`) -> image id."""

    repositories: dict[str, dict[str, str]] = {}


class StateDocument(msgspec.Struct, frozen=True, rename="pascal"):
    running: bool = False
    paused: bool = False
    restarting: bool = False
    dead: bool = False
    exit_code: int = 0
    started_at: str = ""
    finished_at: str = ""


class ContainerDocument(msgspec.Struct, frozen=True, rename="pascal"):
    """`containers/ID/config.v2.json`."""

    id: str = msgspec.field(name="ID")
    name: str = ""
    created: str = ""
    path: str = ""
    args: list[str] = []
    image: str = ""
    driver: str = ""
    config: ContainerSettings = ContainerSettings()
    state: StateDocument = StateDocument()


class DevicesDocument(msgspec.Struct, frozen=True):
    """`devicemapper/metadata/deviceset-metadata`."""

    filesystem: str = msgspec.field(name="BaseDeviceFilesystem", default="")


def read_document(path: Path) -> bytes:
    """The bytes of a document. Raises HomeError for one that cannot be read, or is too long to be one."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise HomeError(f"{path}: {error.strerror}", errno=error.errno) from error
    if len(data) > _MAX_BYTES:
        raise HomeError(f"{path} has more than {_MAX_BYTES} bytes, which no document of a daemon has")
    return data


def decode(path: Path, data: bytes, kind: type[D]) -> D:
    """A document as a structure. Raises HomeError where it is cut off or of another shape."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise HomeError(f"{path} is damaged: {error}") from error
    except UnicodeDecodeError as error:
        raise HomeError(f"{path} is damaged: it is not UTF-8") from error


def read_word(path: Path) -> str:
    """The one word of a small file. Raises HomeError."""
    try:
        return read_document(path).decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise HomeError(f"{path} is damaged: it is not ASCII") from error


def read_digest(path: Path) -> str:
    """The digest in a small file, with its `sha256:`. Raises HomeError."""
    return check_digest(read_word(path), path)


def check_digest(text: str, path: Path) -> str:
    """A digest. Raises HomeError, naming the file that it is from, for anything else."""
    if not _DIGEST.fullmatch(text):
        raise HomeError(f"{path} is damaged: {text[:80]!r} is not a digest")
    return text
