"""Storage options: `dm.KEY=VALUE` of a driver, `size=VALUE` of a layer.

    options = parse_storage_options(["dm.basesize=20G", "dm.mountopt=discard"])   what the user said, checked
    settings = resolve_options(options, facts)                                    with the defaults of this machine
    home_options(options)                                                         for a home that is made now
    changes_to_home(options, status)                                              for an existing one

Nothing is kept between two calls, and what the user did not say stays None (or empty) in `DriverOptions`.

Source of names, defaults and texts: moby's devicemapper driver.
"""

from cowfs.layers.options.driver import DOCKER_OPTIONS, DriverOptions, parse_storage_options
from cowfs.layers.options.homes import HomeChanges, changes_to_home, home_options, pool_source
from cowfs.layers.options.layer import check_layer_size, parse_layer_options
from cowfs.layers.options.settings import Facts, Settings, resolve_options

__all__ = [
    "DOCKER_OPTIONS",
    "DriverOptions",
    "Facts",
    "HomeChanges",
    "Settings",
    "changes_to_home",
    "check_layer_size",
    "home_options",
    "parse_layer_options",
    "parse_storage_options",
    "pool_source",
    "resolve_options",
]
