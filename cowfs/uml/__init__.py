"""User-Mode Linux: run a command on a kernel with dm-thin, as any user, on any machine."""

from cowfs.uml.guest import run, run_captured
from cowfs.uml.kernel import UmlKernel, default_cache, find_kernel, install

__all__ = ["UmlKernel", "default_cache", "find_kernel", "install", "run", "run_captured"]
