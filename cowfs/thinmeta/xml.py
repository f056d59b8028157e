"""The XML of thin_dump and thin_restore.

    <superblock uuid="" time="1" transaction="7" flags="0" version="2" data_block_size="128" nr_data_blocks="256">
      <device dev_id="0" mapped_blocks="6" transaction="1" creation_time="0" snap_time="1">
        <range_mapping origin_begin="0" data_begin="0" length="4" time="0"/>
        <single_mapping origin_block="10" data_block="4" time="0"/>
      </device>
    </superblock>

Block sizes are sectors, everything else counts data blocks. `dump` writes what thin_dump 0.9.0 writes, byte for byte;
`restore` also reads what the 1.x tools add: `<def name="..">` before the devices holds mappings that several devices
share, `<ref name=".."/>` stands for them, and `flags` and `version` may be left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from cowfs.blockdev import BlockDevice
from cowfs.errors import NoSuchThin
from cowfs.thinmeta.format import DeviceDetails, Superblock
from cowfs.thinmeta.walk import MetadataReader, Progress, Run, ThinEntry


class TextSink(Protocol):
    """Where text goes: an open text file, or anything with its `write`."""

    def write(self, text: str, /) -> object: ...


def dump(
    device: BlockDevice,
    out: TextSink,
    *,
    thin_ids: Sequence[int] | None = None,
    skip_mappings: bool = False,
    held: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the metadata as XML, in pieces as it is read.

    Args:
        thin_ids: only these thins; an unknown one is an error before anything is written.
        skip_mappings: the devices without what they map.
        held: read the metadata snapshot instead of the live metadata.
        progress: called with (mapped blocks written, mapped blocks in all).

    Raises:
        MetadataCorrupt: something on the way cannot be read; what was written until then is incomplete.
        NoSuchThin: one of `thin_ids`.
    """
    reader = MetadataReader(device)
    superblock = reader.superblock(held=held)
    thins: Iterable[ThinEntry] = reader.thins(superblock)
    if thin_ids is not None:
        thins = _chosen(thins, set(thin_ids))
    total = sum(details.mapped_blocks for _, details in reader.details(superblock)) if progress else 0
    done = 0
    out.write(_superblock_tag(superblock))
    for thin in thins:
        out.write(_device_tag(thin.thin_id, thin.details))
        if not skip_mappings:
            for runs in reader.runs(thin.root, thin.path):
                out.write("".join(map(_mapping_tag, runs)))
                if progress:
                    done += sum(run.length for run in runs)
                    progress(done, total)
        out.write("  </device>\n")
    out.write("</superblock>\n")


def _chosen(thins: Iterable[ThinEntry], wanted: set[int]) -> list[ThinEntry]:
    found = [thin for thin in thins if thin.thin_id in wanted]
    missing = wanted - {thin.thin_id for thin in found}
    if missing:
        raise NoSuchThin(f"no thin device {min(missing)} in this pool")
    return found


def _superblock_tag(superblock: Superblock) -> str:
    return (
        f'<superblock uuid="" time="{superblock.time}" transaction="{superblock.transaction_id}" '
        f'flags="{superblock.flags}" version="{superblock.version}" '
        f'data_block_size="{superblock.data_block_sectors}" nr_data_blocks="{superblock.data_space_map.nr_blocks}">\n'
    )


def _device_tag(thin_id: int, details: DeviceDetails) -> str:
    return (
        f'  <device dev_id="{thin_id}" mapped_blocks="{details.mapped_blocks}" '
        f'transaction="{details.transaction_id}" creation_time="{details.creation_time}" '
        f'snap_time="{details.snapshotted_time}">\n'
    )


def _mapping_tag(run: Run) -> str:
    if run.length == 1:
        return f'    <single_mapping origin_block="{run.vblock}" data_block="{run.dblock}" time="{run.time}"/>\n'
    return (
        f'    <range_mapping origin_begin="{run.vblock}" data_begin="{run.dblock}" '
        f'length="{run.length}" time="{run.time}"/>\n'
    )
