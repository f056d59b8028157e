"""Thin-provisioned copy-on-write block devices and snapshot chains."""

__version__ = "0.1.0"
