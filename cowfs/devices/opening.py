"""Making and opening homes: each ends in a `DeviceSet` that holds the lock, the pool and the records.

make_home(home, backend, options)         in a new or empty directory
open_home(home, backend, OpenOptions())   what a crash left is finished or undone first
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, TypeAlias

import msgspec

from cowfs.devices.base.base_device import filesystem_named
from cowfs.devices.deviceset import DeviceSet
from cowfs.devices.injected import Injected
from cowfs.devices.on_disk import making
from cowfs.devices.on_disk.files import HomeFiles, close_new_home
from cowfs.devices.on_disk.lock import HomeLock
from cowfs.devices.on_disk.options import HomeOptions, MinimumFree, PoolSource
from cowfs.devices.pools import no_space, pool_source
from cowfs.errors import MetadataCorrupt, OutOfDataSpace
from cowfs.pool import Backend

Progress: TypeAlias = Callable[[str, int, int], None]
_STEPS: Final = 3
_NOTHING_INJECTED: Final = Injected()


class OpenOptions(msgspec.Struct, frozen=True):
    """How a home is opened.

    Attributes:
        read_only: change nothing, not even after a crash; works on a read-only medium.
        untouched: leave no trace either, not even the lock's file; with `read_only`.
        durable: False gives up flushes.
        min_free_percent: in place of what the home says, as in `HomeOptions`.
        source: where the pool is, for a home that does not say so because another program made it.
        verify: False leaves out the check of the base device, to get at the devices of a damaged home.
    """

    read_only: bool = False
    untouched: bool = False
    durable: bool = True
    min_free_percent: int | None = None
    source: PoolSource | None = None
    verify: bool = True


def make_home(
    home: str | os.PathLike[str],
    backend: Backend,
    options: HomeOptions | None = None,
    *,
    progress: Progress | None = None,
    injected: Injected = _NOTHING_INJECTED,
) -> DeviceSet:
    """Make a home in a new or empty directory, or finish one whose making was cut short, and open it.

    Args:
        progress: called with (what is done next, steps done, steps in all).

    Raises:
        UsageError: an option that cannot be.
        HomeError: EEXIST for a home, ENOTEMPTY for another directory, EPERM for one that others may write into, or
            what the file system answers.
    """
    options = options or HomeOptions()
    check_options(options, injected)
    no_space.check_timeout(backend, options.no_space_timeout_seconds)
    say = progress or (lambda _what, _done, _total: None)
    files = HomeFiles(os.path.abspath(home), durable=options.durable, system=injected.system)
    making.require_room_for_home(files)
    files.make_directory(files.home)
    close_new_home(files.home)
    with ExitStack() as undo:
        lock = HomeLock.acquire(files.home)
        undo.callback(lock.release)
        making.require_room_for_home(files)
        say("making the pool", 0, _STEPS)
        options = pool_source.checked_source(files, options)
        making.begin_home(files, options)
        pool = pool_source.make_pool(files, backend, options)
        undo.callback(pool.close)
        no_space.apply(pool, making.settings_of(options))
        devices = DeviceSet(files, lock, pool, making.settings_of(options), injected, read_only=False)
        devices.undo_unfinished()
        say("making the base device", 1, _STEPS)
        _make_base(devices, options, injected)
        say("finishing", 2, _STEPS)
        making.finish_home(files, options)
        say("done", _STEPS, _STEPS)
        undo.pop_all()
    return devices


def open_home(
    home: str | os.PathLike[str],
    backend: Backend,
    options: OpenOptions | None = None,
    *,
    injected: Injected = _NOTHING_INJECTED,
) -> DeviceSet:
    """Lock a home, finish or undo what a crash left, and check that pool and records belong together.

    Raises:
        NotAHome, HomeVersionError, HomeBusy: as they say.
        HomeError: pool files missing, truncated, or not those of the records; EPERM when others may write into the
            home.
        UsageError: an option that cannot be.
        MetadataCorrupt: the pool's metadata.

    A pool that failed, or that needs a check, does not keep a home from opening: it is then open read-only, and
    `problems` says why.
    """
    options = options or OpenOptions()
    MinimumFree(options.min_free_percent or 0).check()
    files = HomeFiles(os.path.abspath(home), durable=options.durable, system=injected.system)
    making.require_home(files)
    making.read_settings(files)
    with ExitStack() as undo, _damage_of(files):
        lock = HomeLock.acquire(files.home, read_only=options.read_only, untouched=options.untouched)
        undo.callback(lock.release)
        making.require_home(files)
        settings = making.read_settings(files)
        if options.min_free_percent is not None:
            changes = {"min_free_percent": options.min_free_percent, "min_free_bytes": None}
            settings = msgspec.structs.replace(settings, **changes)
        if options.source is not None:
            settings = pool_source.at_source(files, settings, options.source)
        pool = pool_source.open_pool(files, backend, settings, read_only=options.read_only)
        undo.callback(pool.close)
        if not settings.thin_pool:
            no_space.apply(pool, settings)
        devices = DeviceSet(files, lock, pool, settings, injected, read_only=options.read_only)
        if devices.guard.health.can_read:
            devices.undo_unfinished()
            devices.verify(base=options.verify)
        undo.pop_all()
    return devices


def check_options(options: HomeOptions, injected: Injected = _NOTHING_INJECTED) -> None:
    """Raises UsageError for an option that no new home can have; `make_home` checks, too."""
    options.check()
    if options.has_less_than_a_block and options.source == PoolSource():
        filesystem = injected.filesystem or filesystem_named("")
        raise making.too_little_data(options, filesystem.empty_bytes(options.base_size_bytes, options.block_bytes))


def _make_base(devices: DeviceSet, options: HomeOptions, injected: Injected) -> None:
    try:
        devices.base.ensure()
        devices.guard.require_free_space()
    except OutOfDataSpace as error:
        if options.source.thin_pool:
            raise
        filesystem = injected.filesystem or filesystem_named(devices.base.filesystem_name)
        taken_bytes = filesystem.empty_bytes(options.base_size_bytes, options.block_bytes)
        raise making.too_little_data(options, taken_bytes) from error


@contextmanager
def _damage_of(files: HomeFiles) -> Iterator[None]:
    """Name the file of damaged metadata, and the command that shows more."""
    try:
        yield
    except MetadataCorrupt as error:
        text = f"{error.detail}; this is in {files.metadata}, and 'pool check' shows what else is wrong there"
        raise MetadataCorrupt(text, block=error.block, path=error.path, errno=error.errno) from error
