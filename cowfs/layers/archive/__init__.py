"""Layer archives: what a layer changed as a tar archive, and back, over the ext4 engine; no mount is needed.

pack.py      a layer's changes as an archive
unpack.py    an archive into a layer
reader.py    entries of any tar archive
headers.py   their headers
records.py   PAX's extended headers
sparse.py    sparse files in archives
names.py     whiteouts, and names that lead out of the layer
ids.py       user and group ids on their way
"""

from cowfs.layers.archive.pack import Written, archive_size, write_archive
from cowfs.layers.archive.unpack import Applied, apply_archive

__all__ = ["Applied", "Written", "apply_archive", "archive_size", "write_archive"]
