"""Mounts by the kernel itself: of devices, of layers, of any node; and what /sys tells of block devices."""
