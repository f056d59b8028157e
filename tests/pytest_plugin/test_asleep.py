"""The plugin costs nothing where it is not used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from tests.pytest_plugin.conftest import Suite

UNUSED = """
import sys

def test_nothing_is_loaded(pytestconfig):
    assert pytestconfig.pluginmanager.hasplugin("cowfs")
    loaded = [name for name in sys.modules if name.split(".")[0] in ("cowfs", "cowfs_emulated", "trio", "pyfuse3")]
    plugin = [name for name in loaded if name.startswith("cowfs.pytest_plugin")]
    assert sorted(set(loaded) - set(plugin)) == ["cowfs", "cowfs.version"]
    names = {name.rpartition(".")[2] for name in plugin}
    assert names == {"pytest_plugin", "plain_imports", "options", "fixtures", "faults", "crashes"}
    plugins = [one for one in pytestconfig.pluginmanager.get_plugins() if "cowfs" in getattr(one, "__name__", "")]
    hooks = {name for plugin in plugins for name in dir(plugin) if name.startswith("pytest_")}
    assert [plugin.__name__ for plugin in plugins] == ["cowfs.pytest_plugin"], "each one more costs every run"
    of_a_session = {"pytest_addoption", "pytest_configure", "pytest_collection_modifyitems"}
    assert hooks == of_a_session, "nothing is done at each test"
"""


def test_a_suite_that_uses_no_fixture_loads_nothing_of_cowfs(suite: Callable[[str], Suite]) -> None:
    outcome = suite(UNUSED).run("-p", "no:trio", "-p", "no:anyio")  # plugins of others, which load trio
    assert outcome.counts == {"passed": 1}, outcome.output


def test_what_pytest_loads_is_light() -> None:
    code = (
        "import sys, cowfs.pytest_plugin\n"
        "sys.exit(' '.join({'trio', 'pyfuse3', 'msgspec', 'cowfs.home', 'cowfs.pool', 'cowfs.errors'} "
        "& set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
