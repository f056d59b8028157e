"""Thin-provisioned copy-on-write block devices and snapshot chains."""
