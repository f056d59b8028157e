"""Thin-provisioned copy-on-write block devices and snapshot chains.

    import cowfs

    with cowfs.open_home("/var/tmp/home", create=True) as home:
        home.create("web")
        home.snapshot("web", "web-monday")

See `cowfs.Home` for what a home can do, and `cowfs.errors` for how it fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowfs.version import VERSION

if TYPE_CHECKING:
    from cowfs.devices.on_disk.options import HomeOptions
    from cowfs.home.api.home import Home, open_home

__all__ = ["Home", "HomeOptions", "__version__", "open_home"]

__version__ = VERSION


def __getattr__(name: str) -> object:
    # Importing a part of cowfs, such as its errors, must not load all of it.
    if name in {"Home", "open_home"}:
        from cowfs.home.api import home  # noqa: PLC0415

        return getattr(home, name)
    if name == "HomeOptions":
        from cowfs.devices.on_disk.options import HomeOptions  # noqa: PLC0415

        return HomeOptions
    raise AttributeError(f"module 'cowfs' has no attribute '{name}'")
