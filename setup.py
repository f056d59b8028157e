"""What pyproject.toml cannot say: the manual pages are written from the commands when the package is built."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithManual(build_py):
    """Adds the pages to the files that are installed below `share`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        from cowfs.cli.manual import write_pages  # noqa: PLC0415  # not before it can be found

        pages = write_pages(Path(self.get_finalized_command("build").build_base) / "man")
        files = self.distribution.data_files or []
        self.distribution.data_files = [*files, ("share/man/man1", [str(page) for page in pages])]


setup(cmdclass={"build_py": BuildWithManual})
