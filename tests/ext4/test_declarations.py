"""The parsed declarations that are shipped are those of the declarations that people read."""

from __future__ import annotations

from pathlib import Path

from cowfs.ext4.library import libext2fs, libext2fs_abi


def test_the_parsed_declarations_are_up_to_date(tmp_path: Path) -> None:
    libext2fs.write_parsed_declarations(str(tmp_path / "parsed.py"))
    shipped = Path(libext2fs_abi.__file__).read_text(encoding="ascii")
    assert (tmp_path / "parsed.py").read_text(encoding="ascii") == shipped, "run python -m cowfs.ext4.library.libext2fs"
