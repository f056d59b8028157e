"""cowfs as pip installs it, for what the start of a command costs its users.

An editable installation finds its packages by a program of setuptools, which every start of Python loads.
"""

from __future__ import annotations

import compileall
import shutil
import sysconfig
import venv
from pathlib import Path

import cowfs
import cowfs_dmthin
import cowfs_emulated

_PROGRAM = """\
#!{python}
import sys
from cowfs.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""


def install(directory: Path) -> Path:
    """Make an environment of Python with compiled copies of our packages, beside what is installed here; its programs.

    Returns:
        The directory with `python` and `cowfs`.
    """
    venv.create(directory, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(directory)}))
    for package in (cowfs, cowfs_emulated, cowfs_dmthin):
        source = Path(package.__path__[0])
        shutil.copytree(source, packages / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(packages, quiet=2)
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    program = directory / "bin" / "cowfs"
    program.write_text(_PROGRAM.format(python=program.with_name("python")))
    program.chmod(0o755)
    return program.parent
