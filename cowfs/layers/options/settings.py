"""What is in force: the options of the user, and for the rest the defaults that depend on the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cowfs.devices.on_disk.options import HomeOptions
from cowfs.errors import MissingRequirement, UsageError
from cowfs.layers.options.driver import DriverOptions

DEFERRED_REMOVAL_VERSION: Final = (4, 27, 0)
DEFAULT_MIN_FREE_PERCENT: Final = HomeOptions().min_free_percent


@dataclass(frozen=True, slots=True)
class Facts:
    """What matters here about the machine and the backend. The defaults are those of a backend in user space.

    `has_mkfs_xfs` and `kernel_knows_xfs` count where `kernel_mounts` does: where a thin device is a node of the kernel
    that can be mounted. `dm_version` is the version of the kernel's device mapper; None where no kernel takes part, so
    that deferring is all the backend's own.
    """

    kernel_mounts: bool = False
    has_mkfs_xfs: bool = False
    kernel_knows_xfs: bool = False
    dm_version: tuple[int, int, int] | None = None

    @property
    def can_defer(self) -> bool:
        return self.dm_version is None or self.dm_version >= DEFERRED_REMOVAL_VERSION


@dataclass(frozen=True, slots=True)
class Settings:
    """What a driver needs to know.

    `filesystem` is for a base device that is made now; an existing one keeps its own. `mount_options` is one text,
    parts separated by commas. `kernel_mounts`: the kernel mounts layers on `get`; else FUSE shows them.
    """

    filesystem: str
    mkfs_args: tuple[str, ...]
    mount_options: str
    xfs_nospace_max_retries: int | None
    deferred_removal: bool
    deferred_deletion: bool
    min_free_percent: int
    kernel_mounts: bool = False

    def mount_data(self, filesystem: str, mount_label: str = "") -> str:
        """The options with which the kernel mounts a layer, as one text.

        Snapshots share their UUID, which xfs takes only with `nouuid`.
        """
        parts = ["nouuid"] if filesystem == "xfs" else []
        parts += [self.mount_options] if self.mount_options else []
        parts += [f'context="{mount_label}"'] if mount_label else []
        return ",".join(parts)


def resolve_options(options: DriverOptions, facts: Facts) -> Settings:
    """The settings that the options mean on a machine.

    Raises:
        UsageError: an option needs what this machine or backend cannot do.
        MissingRequirement: a program has to be installed for it.
    """
    deferred_removal = _deferred_removal(options, facts)
    if options.mount == "kernel" and not facts.kernel_mounts:
        raise UsageError("cowfs.mount=kernel needs a backend with device nodes; take cowfs.mount=fuse")
    percent = options.min_free_space_percent
    return Settings(
        filesystem=_filesystem(options, facts),
        mkfs_args=options.mkfs_args,
        mount_options=",".join(part for part in options.mount_options if part),
        xfs_nospace_max_retries=options.xfs_nospace_max_retries,
        deferred_removal=deferred_removal,
        deferred_deletion=_deferred_deletion(options, facts, deferred_removal=deferred_removal),
        min_free_percent=DEFAULT_MIN_FREE_PERCENT if percent is None else percent,
        kernel_mounts=facts.kernel_mounts and options.mount != "fuse",
    )


def _deferred_removal(options: DriverOptions, facts: Facts) -> bool:
    if options.use_deferred_removal and not facts.can_defer:
        raise UsageError("devmapper: Deferred removal can not be enabled as kernel does not support it")
    return facts.can_defer if options.use_deferred_removal is None else options.use_deferred_removal


def _deferred_deletion(options: DriverOptions, facts: Facts, *, deferred_removal: bool) -> bool:
    wanted = facts.can_defer if options.use_deferred_deletion is None else options.use_deferred_deletion
    if wanted and not deferred_removal:
        raise UsageError(
            "devmapper: Deferred deletion can not be enabled as deferred removal is not enabled. "
            "Enable deferred removal using --storage-opt dm.use_deferred_removal=true parameter"
        )
    return wanted


def _filesystem(options: DriverOptions, facts: Facts) -> str:
    """ext4 is the default: only ext4 is read without a mount, and on every backend."""
    if options.fs == "xfs" and not facts.kernel_mounts:
        raise UsageError("dm.fs=xfs needs mounts by the kernel, which this backend does not make; take dm.fs=ext4")
    if options.fs == "xfs" and options.mount == "fuse":
        raise UsageError("dm.fs=xfs needs mounts by the kernel; leave out cowfs.mount=fuse, or take dm.fs=ext4")
    if options.fs == "xfs" and not facts.has_mkfs_xfs:
        raise MissingRequirement("dm.fs=xfs needs mkfs.xfs", remedy="apt-get install xfsprogs")
    if options.fs == "xfs" and not facts.kernel_knows_xfs:
        raise MissingRequirement("dm.fs=xfs needs a kernel that knows xfs", remedy="modprobe xfs")
    return options.fs or "ext4"
