"""Checking and repairing the ext4 of a device by e2fsck, and making one ready to be mounted.

e2fsck works on a copy of what the device has mapped; a repair writes back only what changed.
"""

from __future__ import annotations

import enum
import errno
from contextlib import suppress
from dataclasses import dataclass

from cowfs.blockdev import BlockDevice
from cowfs.errors import FilesystemError
from cowfs.ext4.format import layout
from cowfs.ext4.journal.recovery import recover, recovered, without_recovery
from cowfs.ext4.tools import commands as tools


class CheckStatus(enum.Flag):
    """The bits of e2fsck's exit status."""

    CORRECTED = 1
    REBOOT = 2
    UNCORRECTED = 4
    OPERATIONAL_ERROR = 8
    USAGE_ERROR = 16
    CANCELLED = 32
    LIBRARY_ERROR = 128


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What e2fsck found. `written_bytes`: how much a repair changed on the device."""

    status: CheckStatus
    output: str
    written_bytes: int = 0

    @property
    def clean(self) -> bool:
        """Nothing was wrong."""
        return not self.status

    @property
    def usable(self) -> bool:
        """Nothing is wrong now."""
        return not self.status & ~(CheckStatus.CORRECTED | CheckStatus.REBOOT)

    @property
    def summary(self) -> str:
        """The last lines that say something, for a message."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip() and not line.startswith("Pass ")]
        return "; ".join(lines[-3:])


def needs_check(device: BlockDevice) -> bool:
    """Whether a volume was not cleanly unmounted, has a journal to replay, or is known to be damaged.

    Raises:
        FilesystemError (EINVAL): no ext4 there.
    """
    superblock = layout.read_superblock(device)
    return (
        not superblock.state & layout.STATE_VALID
        or bool(superblock.state & layout.STATE_ERROR)
        or bool(superblock.incompat & layout.INCOMPAT_RECOVER)
        or bool(superblock.ro_compat & layout.RO_COMPAT_ORPHAN_PRESENT)
    )


def check_volume(device: BlockDevice, *, repair: bool = False) -> CheckResult:
    """Look at everything (`e2fsck -fn`), or repair everything (`e2fsck -fy`)."""
    return _run(device, "-fy" if repair else "-fn", write=repair)


def prepare_for_mount(device: BlockDevice, *, read_only: bool = False, repair: bool = False) -> CheckResult | None:
    """Make a volume fit to be mounted; reads only the superblock when it is.

    A journal is replayed, which takes no check. A volume that needs one gets what e2fsck does without asking (`-p`:
    harmless repairs), and with `repair` whatever it takes. Nothing is written with `read_only`: then the volume that is
    opened shows what is in its journal.

    Returns:
        None when no check was needed.

    Raises:
        FilesystemError: no ext4 (EINVAL); damage whose repair was not allowed (EUCLEAN); a journal that cannot be
            replayed, on a device that is only to be read (EROFS).
    """
    if not needs_check(device):
        return None
    if read_only:
        try:
            recovered(device)
        except FilesystemError as error:
            raise without_recovery(error) from error
        return None
    with suppress(FilesystemError):
        recover(device)
    if not needs_check(device):
        return None
    result = _run(device, "-p", write=True)
    if not result.usable and repair:
        result = _run(device, "-fy", write=True)
    if not result.usable:
        raise FilesystemError(
            f"ext4 is damaged and needs a repair that may lose data: {result.summary}; run a check with repair",
            errno=errno.EUCLEAN,
        )
    return result


def _run(device: BlockDevice, mode: str, *, write: bool) -> CheckResult:
    with tools.temporary_image(device.size_bytes) as image:
        tools.copy_mapped(device, image)
        code, output = tools.run("e2fsck", [mode, image.path])
        if (
            code < 0
            or code & (CheckStatus.OPERATIONAL_ERROR | CheckStatus.USAGE_ERROR | CheckStatus.LIBRARY_ERROR).value
        ):
            raise FilesystemError(f"e2fsck failed with status {code}: {CheckResult(CheckStatus(0), output).summary}")
        written = 0
        if write:
            written = tools.copy_changes(image, device)
            device.flush()
    return CheckResult(CheckStatus(code), output.replace(image.path, "the volume"), written)
