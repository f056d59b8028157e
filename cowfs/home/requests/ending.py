"""The end of the process that serves a mount, told to others."""

from __future__ import annotations

from cowfs.errors import UsageError
from cowfs.home.opened.open_home import OpenHome
from cowfs.home.requests.request import Upload


class TellEnd(Upload[None], frozen=True, tag="tell_end"):
    """Have written into the file that comes with this, once the home is closed, how the server of its mount has ended.

    Raises:
        UsageError: the process that serves the home does more than to serve one mount.
    """

    def run(self, home: OpenHome) -> None:
        if home.end_reports is None:
            raise UsageError(f"the process that serves {home.path} does not report how it ends")
        home.end_reports.add(self.file)
