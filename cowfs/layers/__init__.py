"""Layers: what moby's devicemapper graph driver did, on the device set. Read `interface.py` first."""

from cowfs.layers.interface import Change, ChangeKind, Driver, IdMaps, IdRange, LayerRoot

__all__ = ["Change", "ChangeKind", "Driver", "IdMaps", "IdRange", "LayerRoot"]
