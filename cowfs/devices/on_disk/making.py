"""Whether a directory is a home, and the files of a new one.

While a home is being made, `cowfs.init` is in it; its removal is the last step. Until then nothing in it can be
data of a user, so the next `init` throws away what it finds and starts again.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from contextlib import suppress
from typing import Final

import msgspec

from cowfs.devices.on_disk.files import TEMPORARY_NAME, HomeFiles
from cowfs.devices.on_disk.lock import LOCK_NAME
from cowfs.devices.on_disk.names import BASE
from cowfs.devices.on_disk.options import HomeOptions, PoolSource
from cowfs.devices.on_disk.records import HOME_FORMAT, HOME_VERSION, HomeFile
from cowfs.errors import HomeError, HomeVersionError, NotAHome, UsageError, command_line
from cowfs.units import format_size

_MARKER: Final = b"This home is being made. If nothing is making it, run init again.\n"


class HomeState(enum.Enum):
    ABSENT = "there is nothing"
    EMPTY = "an empty directory"
    HALF_MADE = "a home whose initialisation was interrupted"
    HOME = "a home"
    OTHER = "something else"


def state_of(files: HomeFiles) -> HomeState:
    """Raises HomeError when the directory may not be read."""
    try:
        entries = set(os.listdir(files.home))
    except FileNotFoundError:
        return HomeState.ABSENT
    except NotADirectoryError:
        return HomeState.OTHER
    except OSError as error:
        raise HomeError(f"cannot read the home {files.home}: {error.strerror}", errno=error.errno) from error
    if os.path.basename(files.init_marker) in entries:
        return HomeState.HALF_MADE
    marks = (files.home_file, files.own_data, files.own_metadata, files.record(BASE), files.set_file)
    if any(_is_mark(mark) for mark in marks):
        return HomeState.HOME
    ours = {LOCK_NAME, TEMPORARY_NAME, os.path.basename(files.lvm_setup)}
    return HomeState.OTHER if entries - ours else HomeState.EMPTY


def _is_mark(path: str) -> bool:
    """Whether there is a file: a directory of that name is part of a home one level below.

    Raises HomeError when it is not known, where `os.path.lexists` says no.
    """
    try:
        return not stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise HomeError(f"cannot look for {path}: {error.strerror}", errno=error.errno) from error


def is_home(files: HomeFiles) -> bool:
    """Whether there is a finished home. Raises HomeError when the directory may not be read."""
    return state_of(files) is HomeState.HOME


def require_home(files: HomeFiles) -> None:
    """Raises NotAHome unless there is a finished home."""
    state = state_of(files)
    if state is HomeState.HOME:
        return
    if state is HomeState.HALF_MADE:
        raise NotAHome(
            f"the home {files.home} is incomplete, because its initialisation was interrupted; run init again"
        )
    what = f"it is {state.value}"
    if state is HomeState.ABSENT:
        what = "it does not exist"
    elif not os.path.isdir(files.home):
        what = "it is not a directory"
    elif (near := _home_near(files.home)) is not None:
        raise NotAHome(f"{files.home} is not a home, but {near} is one; name that: {command_line('--home', near)}")
    raise NotAHome(f"{files.home} is not a home: {what}; make one with init, or name another directory")


def _home_near(directory: str) -> str | None:
    """A home that may have been meant: Docker's driver has its own in the daemon's directory; or the one around."""
    for near in (os.path.join(directory, "devicemapper"), os.path.dirname(directory)):
        with suppress(HomeError):
            if is_home(HomeFiles(near)):
                return near
    return None


def require_room_for_home(files: HomeFiles) -> None:
    """Raises HomeError when a home may not be made here."""
    state = state_of(files)
    if state is HomeState.HOME:
        raise HomeError(f"{files.home} is a home already; nothing was changed", errno=errno.EEXIST)
    if state is HomeState.OTHER:
        message = f"{files.home} is not an empty directory; name a new or empty one for the home"
        raise HomeError(message, errno=errno.ENOTEMPTY)


def read_settings(files: HomeFiles) -> HomeFile:
    """What this program wrote about a home, moby's defaults where it wrote nothing; `files` learns where the pool is.

    Raises:
        HomeVersionError: another version of the program made it, or the file is damaged.
    """
    settings = stored_settings(files)
    files.use_devices(settings.data_device, settings.metadata_device)
    return settings


def stored_settings(files: HomeFiles) -> HomeFile:
    """What `cowfs.json` says, moby's defaults without one. Raises HomeVersionError."""
    data = files.read(files.home_file)
    if data is None:
        return HomeFile()
    try:
        version = msgspec.json.decode(data, type=_Version)
        if version.format == HOME_FORMAT and version.version == HOME_VERSION:
            return msgspec.json.decode(data, type=HomeFile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HomeVersionError(f"{files.home_file} is damaged ({error}); restore it or remove it") from error
    raise HomeVersionError(
        f"the home {files.home} is of format '{version.format}' version {version.version}, and this program knows "
        f"'{HOME_FORMAT}' version {HOME_VERSION}; use the program that made it"
    )


def store_settings(files: HomeFiles, settings: HomeFile) -> None:
    files.write(files.home_file, msgspec.json.encode(settings))


class _Version(msgspec.Struct):
    format: str = ""
    version: int = 0


def settings_of(options: HomeOptions) -> HomeFile:
    return HomeFile(
        low_water_blocks=options.low_water_blocks,
        skip_block_zeroing=options.skip_block_zeroing,
        error_if_no_space=options.error_if_no_space,
        no_discard_passdown=options.no_discard_passdown,
        min_free_percent=options.min_free_percent,
        min_free_bytes=options.min_free_bytes,
        base_size_bytes=options.base_size_bytes,
        data_device=options.source.data_device,
        metadata_device=options.source.metadata_device,
        thin_pool=options.source.pool_name,
        no_space_timeout_seconds=options.no_space_timeout_seconds,
    )


def is_being_made_as(files: HomeFiles, source: PoolSource) -> bool:
    """Whether the making of this home was cut short, with its pool in this very place outside the home."""
    if source == PoolSource() or state_of(files) is not HomeState.HALF_MADE:
        return False
    try:
        before = read_settings(files)
    except HomeError:
        return False
    return (before.data_device, before.metadata_device, before.thin_pool) == (
        source.data_device,
        source.metadata_device,
        source.pool_name,
    )


def too_little_data(options: HomeOptions, base_bytes: int) -> UsageError:
    """Why the base of a new home found no space, with the least size that has it.

    Args:
        base_bytes: what an empty base device takes of the pool.
    """
    free_bytes = options.min_free_bytes
    if free_bytes is None:
        least_bytes = -(-base_bytes * 100 // (100 - options.min_free_percent))
        kept = f"{options.min_free_percent} % stay free"
    else:
        least_bytes = base_bytes + free_bytes
        kept = f"{free_bytes} bytes ({format_size(free_bytes)}) stay free"
    least_bytes = -(-least_bytes // options.block_bytes) * options.block_bytes
    return UsageError(
        f"data size {options.data_size_bytes} ({format_size(options.data_size_bytes)}) is too small: an empty base "
        f"device of {format_size(options.base_size_bytes)} takes {base_bytes} bytes of it, and {kept}; "
        f"take at least {least_bytes} ({format_size(least_bytes)}), or a smaller base or minimum",
        errno=errno.ENOSPC,
    )


def begin_home(files: HomeFiles, options: HomeOptions) -> None:
    """Make everything of a new home but its pool's content.

    What an interrupted attempt left is removed first, except for the records of what it made in another program's pool.
    """
    goes_on = bool(options.source.thin_pool) and is_being_made_as(files, options.source)
    files.write(files.init_marker, _MARKER)
    if not goes_on:
        _clear(files)
    files.use_devices(options.source.data_device, options.source.metadata_device)
    files.make_directory(files.pool_directory)
    files.make_directory(files.records)
    files.make_mounts()
    if options.source != PoolSource():
        # Says to the next attempt that the content of these devices is its own.
        store_settings(files, settings_of(options))
    if options.source.thin_pool:
        return
    if files.data == files.own_data:
        files.make_sparse(files.data, options.data_size_bytes)
    if files.metadata == files.own_metadata:
        files.make_sparse(files.metadata, options.metadata_size_bytes)


def finish_home(files: HomeFiles, options: HomeOptions) -> None:
    store_settings(files, settings_of(options))
    files.remove(files.init_marker)


def _clear(files: HomeFiles) -> None:
    made = (files.own_data, files.own_metadata, files.transaction, files.set_file, files.record(BASE))
    for path in (*made, files.home_file, files.parents):
        if os.path.lexists(path):
            files.remove(path)
