"""What a layer adds to its parent is what its removal gives back, whatever it holds."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from cowfs.devices.pools.health import require_status
from cowfs.steps import finish
from tests.layers.driver_home import MIB, Opened, opened

NOISE = random.Random(5).randbytes(4 * MIB)
LOWER = {f"d{number % 10}/f{number}": NOISE[: number * 37] for number in range(200)} | {"large": NOISE}

# Of each: files, other names of one of them, and how many inodes of the layer are new or changed.
SHAPES: dict[str, tuple[dict[str, bytes], dict[str, str], int]] = {
    "nothing": ({}, {}, 0),
    "small files": ({f"new/f{number}": NOISE[:700] for number in range(300)}, {}, 301),
    "a small file in every directory": ({f"d{number}/new": NOISE[:700] for number in range(10)}, {}, 20),
    "large files": ({"one": NOISE, "two": NOISE[::-1]}, {}, 2),
    "a large file changed": ({"large": NOISE[::-1]}, {}, 1),
    "zeros": ({"zeros": bytes(4 * MIB)}, {}, 1),
    "whiteouts": ({f".wh.d{number}": b"" for number in range(5)} | {".wh.large": b""}, {}, 0),
    "opaque": ({"d1/.wh..wh..opq": b"", "d1/new": NOISE[:9000]}, {}, 2),
    "hard links": ({"new": NOISE[:9000]}, {f"link{number}": "new" for number in range(100)}, 101),
    "hard links to what is below": ({}, {f"link{number}": f"d0/f{10 * number}" for number in range(20)}, 20),
}


def archive(files: dict[str, bytes], links: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            tar.addfile(info)
    return out.getvalue()


def used_bytes(made: Opened) -> int:
    pool = made.devices.pool
    return require_status(pool).used_data_blocks * pool.table().block_sectors * 512


@pytest.mark.parametrize("shape", SHAPES)
def test_usage_is_what_a_removal_gives_back(tmp_path: Path, shape: str) -> None:
    files, links, inodes = SHAPES[shape]
    with opened(tmp_path / "home") as made:
        made.driver.create("lower", None)
        made.apply("lower", archive(LOWER, {}))
        made.driver.create("upper", "lower")
        made.apply("upper", archive(files, links))
        usage = finish(made.driver.usage("upper", "lower"))
        used = used_bytes(made)
        made.driver.remove("upper")
        assert used - used_bytes(made) == usage.size_bytes
        assert usage.inodes == inodes
        lower = finish(made.driver.usage("lower", None))
        used = used_bytes(made)
        made.driver.remove("lower")
        assert used - used_bytes(made) == lower.size_bytes
        assert lower.inodes == len(LOWER) + 10
