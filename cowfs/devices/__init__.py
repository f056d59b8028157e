"""The device set of a home: thin devices by name, laid out as moby's devicemapper does, crash safe."""

from cowfs.devices.active import Quiescer
from cowfs.devices.base import BaseFilesystem, filesystem_named
from cowfs.devices.deviceset import DeviceSet, Progress
from cowfs.devices.files import System
from cowfs.devices.lock import LOCK_NAME, HomeLock
from cowfs.devices.names import BASE, check_name
from cowfs.devices.options import HomeOptions, PoolSource
from cowfs.devices.records import DeviceFigures, DeviceRecord, HomeStatus

__all__ = [
    "BASE",
    "LOCK_NAME",
    "BaseFilesystem",
    "DeviceFigures",
    "DeviceRecord",
    "DeviceSet",
    "HomeLock",
    "HomeOptions",
    "HomeStatus",
    "PoolSource",
    "Progress",
    "Quiescer",
    "System",
    "check_name",
    "filesystem_named",
]
