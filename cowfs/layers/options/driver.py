"""The options of a driver, Docker's 23 and one of our own, as the user gave them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from cowfs.errors import UsageError
from cowfs.layers.lvm_config import LvmConfig
from cowfs.layers.options import values

FILESYSTEMS: Final = ("ext4", "xfs")
MOUNTERS: Final = ("kernel", "fuse")
LOG_LEVELS: Final = range(2, 8)
_POOL_NAME_PREFIX: Final = "/dev/mapper/"


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """The options that a user gave, each under the name of its option `dm.<name>`; None or empty is not given.

    `mkfs_args` and `mount_options` are those of `dm.mkfsarg` and `dm.mountopt`, in order.
    """

    # Where the pool is; without any of these it is made of two sparse files.
    thinpooldev: str = ""
    datadev: str = ""
    metadatadev: str = ""
    directlvm_device: str = ""
    directlvm_device_force: bool | None = None
    thinp_percent: int | None = None
    thinp_metapercent: int | None = None
    thinp_autoextend_threshold: int | None = None
    thinp_autoextend_percent: int | None = None
    loopdatasize_bytes: int | None = None
    loopmetadatasize_bytes: int | None = None
    blocksize_bytes: int | None = None
    min_free_space_percent: int | None = None

    # The base device and the file systems.
    basesize_bytes: int | None = None
    fs: str = ""
    mkfs_args: tuple[str, ...] = ()
    mount_options: tuple[str, ...] = ()
    xfs_nospace_max_retries: int | None = None

    # How devices go.
    blkdiscard: bool | None = None
    use_deferred_removal: bool | None = None
    use_deferred_deletion: bool | None = None

    # Who shows the files of layers, an option `cowfs.mount` of our own.
    mount: str = ""

    # Of libraries that cowfs does without: checked, and nothing more.
    override_udev_sync_check: bool | None = None
    libdm_log_level: int | None = None

    @property
    def lvm(self) -> LvmConfig:
        return LvmConfig(
            device=self.directlvm_device,
            thinp_percent=self.thinp_percent or 0,
            thinp_metapercent=self.thinp_metapercent or 0,
            autoextend_percent=self.thinp_autoextend_percent or 0,
            autoextend_threshold=self.thinp_autoextend_threshold or 0,
        )


def parse_storage_options(options: Iterable[str]) -> DriverOptions:
    """The options in `KEY=VALUE` form. A later one replaces an earlier one, or is added where several make sense.

    Raises:
        UsageError: the first that cannot be, or a combination that cannot.
    """
    found: dict[str, Any] = {}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator:
            raise UsageError(f"Unable to parse key/value option: {option}")
        key, value = key.strip().lower(), value.strip()
        if key in _REPEATABLE:
            field = _REPEATABLE[key]
            found[field] = (*found.get(field, ()), value)
        elif key in _SINGLE:
            field, parse = _SINGLE[key]
            found[field] = parse(key, value)
        else:
            raise UsageError(f"devmapper: Unknown option {key}")
    parsed = DriverOptions(**found)
    parsed.lvm.check()
    if not parsed.lvm.is_empty and parsed.thinpooldev:
        raise UsageError("cannot setup direct-lvm when `dm.thinpooldev` is also specified")
    return parsed


# ---------------------------------------------------------------------------- values, given their key for the message


def _text(_key: str, value: str) -> str:
    return value


def _size(_key: str, value: str) -> int:
    return values.parse_size(value)


def _bool(_key: str, value: str) -> bool:
    return values.parse_bool(value)


def _uint(_key: str, value: str) -> int:
    return values.parse_uint(value)


def _pool_name(_key: str, value: str) -> str:
    return value.removeprefix(_POOL_NAME_PREFIX)


def _filesystem(_key: str, value: str) -> str:
    if value not in FILESYSTEMS:
        raise UsageError(f"devmapper: Unsupported filesystem {value}")
    return value


def _mounter(key: str, value: str) -> str:
    if value not in MOUNTERS:
        raise UsageError(f"{key} is {' or '.join(MOUNTERS)}, not '{value}'")
    return value


def _min_free_space(key: str, value: str) -> int:
    if not value.endswith("%"):
        raise UsageError(f"devmapper: Option {key} requires % suffix")
    percent = values.parse_percent(value)
    if percent >= 100:
        raise UsageError(f"devmapper: Invalid value {value} for option {key}")
    return percent


def _log_level(key: str, value: str) -> int:
    level = _named(key, value, values.parse_int)
    if level not in LOG_LEVELS:
        raise UsageError(f"{key} must be in range [{LOG_LEVELS[0]},{LOG_LEVELS[-1]}]")
    return level


def _percent_up_to(most: int) -> Callable[[str, str], int]:
    def parse(key: str, value: str) -> int:
        percent = _named(key, value, values.parse_percent)
        if percent > most:
            raise UsageError(f"{key} must be greater than 0 and less than 100")
        return percent

    return parse


def _named(key: str, value: str, parse: Callable[[str], int]) -> int:
    try:
        return parse(value)
    except UsageError as error:
        raise UsageError(f"could not parse `{key}={value}`: {error}") from None


_REPEATABLE: Final = {"dm.mkfsarg": "mkfs_args", "dm.mountopt": "mount_options"}
_SINGLE: Final[dict[str, tuple[str, Callable[[str, str], object]]]] = {
    "dm.thinpooldev": ("thinpooldev", _pool_name),
    "dm.directlvm_device": ("directlvm_device", _text),
    "dm.directlvm_device_force": ("directlvm_device_force", _bool),
    "dm.thinp_percent": ("thinp_percent", _percent_up_to(99)),
    "dm.thinp_metapercent": ("thinp_metapercent", _percent_up_to(99)),
    # 100 turns the extension off, whatever the message says.
    "dm.thinp_autoextend_threshold": ("thinp_autoextend_threshold", _percent_up_to(100)),
    "dm.thinp_autoextend_percent": ("thinp_autoextend_percent", _percent_up_to(100)),
    "dm.basesize": ("basesize_bytes", _size),
    "dm.loopdatasize": ("loopdatasize_bytes", _size),
    "dm.loopmetadatasize": ("loopmetadatasize_bytes", _size),
    "dm.fs": ("fs", _filesystem),
    "dm.datadev": ("datadev", _text),
    "dm.metadatadev": ("metadatadev", _text),
    "dm.blocksize": ("blocksize_bytes", _size),
    "dm.blkdiscard": ("blkdiscard", _bool),
    "dm.override_udev_sync_check": ("override_udev_sync_check", _bool),
    "dm.use_deferred_removal": ("use_deferred_removal", _bool),
    "dm.use_deferred_deletion": ("use_deferred_deletion", _bool),
    "dm.min_free_space": ("min_free_space_percent", _min_free_space),
    "dm.xfs_nospace_max_retries": ("xfs_nospace_max_retries", _uint),
    "dm.libdm_log_level": ("libdm_log_level", _log_level),
    "cowfs.mount": ("mount", _mounter),
}
DOCKER_OPTIONS: Final = tuple(sorted(key for key in (*_SINGLE, *_REPEATABLE) if key.startswith("dm.")))
