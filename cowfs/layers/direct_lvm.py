"""direct-lvm: a thin pool that LVM makes on a whole disk, once, for `dm.directlvm_device`.

The setup is recorded in the home's `setup-config.json`, with the values the user gave; as long as they are the same,
the pool `docker-thinpool` is simply used. A disk is looked at before it is taken, and after a failed step what the
steps before it made is taken back.

    disk  ── pvcreate ─ vgcreate ──►  volume group docker
               lvcreate thinpool, thinpoolmeta ─ lvconvert ──►  docker/thinpool, seen by the device mapper as
                                                                docker-thinpool; extended by lvm's monitor (profile)

Source of names, files, steps and texts: moby's devicemapper driver.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from cowfs.devices.on_disk.files import HomeFiles
from cowfs.errors import CowfsError, HomeError, MissingRequirement, UsageError
from cowfs.ext4.tools import commands as tools
from cowfs.layers.lvm_config import POOL_NAME, LvmConfig

PROFILE_DIRECTORY: Final = "/etc/lvm/profile"
_PROFILE: Final = "docker-thinpool"
_GROUP: Final = "docker"
_DATA: Final = "thinpool"
_METADATA: Final = "thinpoolmeta"
_CHUNK: Final = "512K"
_REQUIRED: Final = (
    ("pvcreate", "lvm2"),
    ("vgcreate", "lvm2"),
    ("lvcreate", "lvm2"),
    ("lvconvert", "lvm2"),
    ("lvchange", "lvm2"),
    ("thin_check", "thin-provisioning-tools"),
)
_DEFAULT_PERCENT: Final = 95
_DEFAULT_METADATA_PERCENT: Final = 1
_DEFAULT_THRESHOLD: Final = 80
_DEFAULT_EXTENSION: Final = 20


class Commands(Protocol):
    """The programs of the system; tests put others in their place."""

    def find(self, command: str, package: str) -> str:
        """Its path. Raises MissingRequirement, which names the package."""
        ...

    def run(self, command: str, arguments: Sequence[str], package: str) -> tuple[int, str]:
        """Exit status, and what it said on both its outputs."""
        ...


def prepare_pool(
    files: HomeFiles,
    config: LvmConfig,
    *,
    force: bool = False,
    commands: Commands = tools,
    profile_directory: str = PROFILE_DIRECTORY,
) -> str:
    """Set direct-lvm up unless this home did so before; the name of the pool.

    Args:
        files: of a home whose directory exists.
        force: take the disk even when it holds a file system.
        profile_directory: where LVM looks for profiles.

    Raises:
        UsageError: the configuration cannot be, or is another than the one that was set up.
        MissingRequirement: programs have to be installed.
        HomeError: the disk is not free, or a program failed; its words are in the message.
    """
    config.check()
    stored = read_config(files)
    if config == stored:
        return POOL_NAME
    if not stored.is_empty:
        raise UsageError("changing direct-lvm config is not supported")
    _require(commands)
    _check_disk(config.device, commands, force=force)
    done: list[_Step] = []
    try:
        _set_up(config, commands, profile_directory, done)
        files.write(files.lvm_setup, msgspec.json.encode(config))
    except CowfsError as error:
        left = _take_back(commands, done)
        if left:
            raise HomeError(f"{error}; taking back what was made failed, too: {'; '.join(left)}") from error
        raise
    return POOL_NAME


def read_config(files: HomeFiles) -> LvmConfig:
    """What was set up; an empty one when nothing was. Raises HomeError for a damaged file."""
    data = files.read(files.lvm_setup)
    if not data:
        return LvmConfig()
    try:
        return msgspec.json.decode(data, type=LvmConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HomeError(
            f"{files.lvm_setup} is damaged ({error}); restore it, or remove it when no direct-lvm pool was set up"
        ) from error


# ---------------------------------------------------------------------------- looking at the disk


def _check_disk(device: str, commands: Commands, *, force: bool) -> None:
    """Raises HomeError when a disk is not free. A program that is missing or fails says nothing."""
    names = {device, os.path.realpath(device)}
    scan = _said_by(commands, "lvmdiskscan", [], "lvm2")
    if scan is not None and not names & set(scan.split()):
        raise HomeError(f"{device} is not available for use with devicemapper")
    group = _volume_group(_said_by(commands, "pvdisplay", [device], "lvm2") or "")
    if group:
        raise HomeError(
            f'{device} is already part of a volume group "{group}": must remove this device from any volume group or '
            "provide a different device"
        )
    if not force and _has_filesystem(_said_by(commands, "blkid", [device], "util-linux") or ""):
        raise HomeError(
            f"{device} has a filesystem already, use dm.directlvm_device_force=true if you want to wipe the device"
        )


def _said_by(commands: Commands, command: str, arguments: Sequence[str], package: str) -> str | None:
    try:
        status, output = commands.run(command, arguments, package)
    except MissingRequirement:
        return None
    return output if status == 0 else None


def _volume_group(pvdisplay: str) -> str:
    """The group in the output of pvdisplay, empty for none."""
    for line in pvdisplay.splitlines():
        _, label, value = line.partition("VG Name")
        if label:
            return value.strip()
    return ""


def _has_filesystem(blkid: str) -> bool:
    """Whether the output of blkid, `DEVICE: KEY="VALUE" ...`, names a type."""
    types = [word.removeprefix("TYPE=") for word in blkid.split() if word.startswith("TYPE=")]
    return any(found.strip('"') for found in types)


# ---------------------------------------------------------------------------- setting up


class _Step(NamedTuple):
    command: str
    arguments: list[str]
    undo: tuple[str, list[str]] | None = None


def _steps(config: LvmConfig) -> list[_Step]:
    percent = config.thinp_percent or _DEFAULT_PERCENT
    metadata_percent = config.thinp_metapercent or _DEFAULT_METADATA_PERCENT
    wipe = ["--wipesignatures", "y"]
    pool, metadata = f"{_GROUP}/{_DATA}", f"{_GROUP}/{_METADATA}"
    return [
        _Step("pvcreate", ["-f", config.device], undo=("pvremove", [config.device])),
        # Removing the group removes the volumes in it, too.
        _Step("vgcreate", [_GROUP, config.device], undo=("vgremove", ["-f", _GROUP])),
        _Step("lvcreate", [*wipe, "-n", _DATA, _GROUP, "--extents", f"{percent}%VG"]),
        _Step("lvcreate", [*wipe, "-n", _METADATA, _GROUP, "--extents", f"{metadata_percent}%VG"]),
        _Step("lvconvert", ["-y", "--zero", "n", "-c", _CHUNK, "--thinpool", pool, "--poolmetadata", metadata]),
        _Step("lvchange", ["--metadataprofile", _PROFILE, pool]),
    ]


def _require(commands: Commands) -> None:
    missing: dict[str, str] = {}
    for command, package in _REQUIRED:
        try:
            commands.find(command, package)
        except MissingRequirement:
            missing[command] = package
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        raise MissingRequirement(
            f"direct-lvm needs {', '.join(missing)}, not installed here", remedy=f"apt-get install {packages}"
        )


def _set_up(config: LvmConfig, commands: Commands, profile_directory: str, done: list[_Step]) -> None:
    """Take the steps one by one; those that were taken are in `done`."""
    _write_profile(config, profile_directory)
    for step in _steps(config):
        status, output = commands.run(step.command, step.arguments, "lvm2")
        if status:
            raise HomeError(f"direct-lvm on {config.device}: {_words(step.command, status, output)}")
        done.append(step)


def _take_back(commands: Commands, done: Sequence[_Step]) -> list[str]:
    """What could not be taken back, in words."""
    left = []
    for command, arguments in [step.undo for step in reversed(done) if step.undo]:
        try:
            status, output = commands.run(command, arguments, "lvm2")
        except MissingRequirement as error:
            status, output = -1, error.message
        if status:
            left.append(_words(f"{command} {' '.join(arguments)}", status, output))
    return left


def _words(command: str, status: int, output: str) -> str:
    return f"{command} failed with status {status}: {tools.one_line(output) or 'it said nothing'}"


def _write_profile(config: LvmConfig, directory: str) -> None:
    """What lvm's monitor reads when the pool fills up."""
    path = os.path.join(directory, f"{_PROFILE}.profile")
    text = (
        "activation {\n"
        f"  thin_pool_autoextend_threshold={config.autoextend_threshold or _DEFAULT_THRESHOLD}\n"
        f"  thin_pool_autoextend_percent={config.autoextend_percent or _DEFAULT_EXTENSION}\n"
        "}\n"
    )
    try:
        os.makedirs(directory, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        raise HomeError(f"cannot write {path}: {error.strerror}", errno=error.errno) from error
