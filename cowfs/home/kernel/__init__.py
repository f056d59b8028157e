"""Mounts by the kernel itself, of a home's devices and layers."""
