"""Thin-provisioned copy-on-write block devices and snapshot chains."""

from cowfs.version import VERSION

__all__ = ["__version__"]

__version__ = VERSION
