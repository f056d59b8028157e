"""The device set of a home: thin devices by name, laid out as moby's devicemapper does, crash safe.

deviceset                                   `DeviceSet`, which everything else here serves. Read it first
files, records, store, names, ids, lock     what is in a home's directory, and who may change it
options, making                             what a new home is made of, and its making
pool_source, pool_files, pool_growth        the pool under a home, wherever it is; signatures: what is on a device
base, base_ext4, base_xfs                   the base device and its file system
transactions, replacement, deletions        changes that happen wholly or not at all
recovery                                    records and pool that contradict each other
active, volumes                             devices in use; their open ext4 volumes
figures, free_space, health                 what is occupied, what must stay free, what a pool still lets one do
"""

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
