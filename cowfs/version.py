"""The version of this program and the name under which it is installed, as in pyproject.toml."""

VERSION = "0.1.0"
DISTRIBUTION = "cowfs-thin"  # for pip; the package and the command are cowfs
