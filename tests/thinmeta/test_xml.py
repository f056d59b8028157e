"""XML out and in: byte for byte what thin_dump writes, accepted both ways, and no harm from hostile input."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.blockdev import MemoryDevice
from cowfs.errors import CowfsError, InvalidRequest, MetadataCorrupt, NoSuchThin, OutOfMetadataSpace
from cowfs.thinmeta import Metadata
from cowfs.thinmeta.check import check
from cowfs.thinmeta.xml import dump, restore
from tests.kit.damage import DAMAGES
from tests.thinmeta.conftest import Tools, map_blocks, xml_of

SUPERBLOCK = (
    '<superblock uuid="" time="3" transaction="7" flags="0" version="2" data_block_size="128" nr_data_blocks="500">'
)
DEVICE = '<device dev_id="1" mapped_blocks="4" transaction="1" creation_time="0" snap_time="1">'
RANGE = '<range_mapping origin_begin="10" data_begin="20" length="4" time="2"/>'
GOOD = f"{SUPERBLOCK}\n{DEVICE}\n{RANGE}\n</device>\n</superblock>\n"


def restored(text: str | bytes, size_bytes: int = 1 << 20, **options: Any) -> MemoryDevice:
    device = MemoryDevice(size_bytes)
    restore(io.BytesIO(text.encode() if isinstance(text, str) else text), device, **options)
    report = check(device)
    assert report.summary == "clean", report.findings
    return device


# --------------------------------------------------------------------------------------------- dump


def test_dump_is_thin_dumps(sample: MemoryDevice, old_tools: Tools) -> None:
    assert xml_of(sample) == old_tools.output("thin_dump", sample)


def test_dump_of_docker_metadata(docker: MemoryDevice, old_tools: Tools) -> None:
    assert xml_of(docker) == old_tools.output("thin_dump", docker)


@pytest.mark.parametrize("name", ["needs_check", "unknown_flag", "uuid", "version_1"])
def test_dump_of_odd_superblocks(name: str, sample: MemoryDevice, old_tools: Tools) -> None:
    DAMAGES[name](sample)
    assert xml_of(sample) == old_tools.output("thin_dump", sample)


def test_dump_options(sample: MemoryDevice, old_tools: Tools) -> None:
    out = io.StringIO()
    dump(sample, out, skip_mappings=True)
    assert out.getvalue() == old_tools.output("thin_dump", sample, "--skip-mappings")
    out = io.StringIO()
    dump(sample, out, thin_ids=[3])
    assert out.getvalue() == old_tools.output("thin_dump", sample, "--dev-id", "3")
    out = io.StringIO()
    dump(sample, out, held=True)
    assert out.getvalue() == old_tools.output("thin_dump", sample, "-m")
    assert 'nr_data_blocks="0"' in out.getvalue()


def test_dump_of_an_unknown_thin_writes_nothing(sample: MemoryDevice) -> None:
    out = io.StringIO()
    with pytest.raises(NoSuchThin, match="no thin device 77"):
        dump(sample, out, thin_ids=[3, 77])
    assert out.getvalue() == ""


def test_dump_without_a_metadata_snapshot(docker: MemoryDevice) -> None:
    with pytest.raises(MetadataCorrupt, match="no metadata snapshot is held"):
        dump(docker, io.StringIO(), held=True)


def test_runs_go_on_across_leaves(old_tools: Tools) -> None:
    device = MemoryDevice(1 << 20)
    metadata = Metadata.create(device, 128)
    metadata.resize_data(4000)
    metadata.create_thin(1)
    map_blocks(metadata, 1, 7, 3000)
    metadata.commit()
    text = xml_of(device)
    assert text.count("_mapping ") == 1
    assert '<range_mapping origin_begin="7" data_begin="0" length="3000" time="0"/>' in text
    assert text == old_tools.output("thin_dump", device)


def test_dump_progress(sample: MemoryDevice) -> None:
    told: list[tuple[int, int]] = []
    dump(sample, io.StringIO(), progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == check(sample).mapped_blocks


# --------------------------------------------------------------------------------------------- restore


def test_restore_of_our_dump(sample: MemoryDevice, old_tools: Tools, new_tools: Tools) -> None:
    text = xml_of(sample)
    device = restored(text)
    assert xml_of(device) == text
    assert (old_tools.check(device), new_tools.check(device)) == (0, 0)
    assert old_tools.output("thin_dump", device) == text


def test_thin_restore_takes_our_dump(sample: MemoryDevice, old_tools: Tools, new_tools: Tools) -> None:
    text = xml_of(sample)
    for tools in (old_tools, new_tools):
        device = tools.restore(text, 1 << 20)
        assert xml_of(device) == text
        assert check(device).clean  # 0.9.0 leaves its free counts wrong, which are warnings


def test_restore_of_the_new_tools_dump(sample: MemoryDevice, new_tools: Tools) -> None:
    """1.x writes shared subtrees once: <def> and <ref>."""
    text = new_tools.output("thin_dump", sample)
    assert "<def " in text
    assert "<ref " in text
    device = restored(text)
    assert xml_of(device) == xml_of(sample)
    assert check(device).metadata_used_blocks <= check(sample).metadata_used_blocks
    assert new_tools.check(device) == 0


def test_sharing_is_kept_through_definitions(new_tools: Tools) -> None:
    source = MemoryDevice(8 << 20)
    metadata = Metadata.create(source, 128)
    metadata.resize_data(6000)
    metadata.create_thin(0)
    for vblock in range(0, 10000, 2):
        map_blocks(metadata, 0, vblock, 1)
    for thin_id in range(1, 100):
        metadata.create_snap(thin_id, 0)
    map_blocks(metadata, 50, 1, 1)
    metadata.commit()
    device = restored(new_tools.output("thin_dump", source))
    assert xml_of(device) == xml_of(source)
    assert check(device).metadata_used_blocks < 80
    assert new_tools.check(device) == 0


def test_definitions() -> None:
    """Definitions of every size around what fits a leaf, used alone, together, nested, and not at all."""

    def entries(begin: int, count: int) -> str:
        return "".join(
            f'<single_mapping origin_block="{begin + 2 * i}" data_block="{begin % 400 + i % 90}" time="0"/>'
            for i in range(count)
        )

    sizes = [1, 83, 84, 252, 253, 335, 336, 337, 600]
    definitions, begin = "", 0
    begins = []
    for i, size in enumerate(sizes):
        begins.append(begin)
        definitions += f'<def name="d{i}">{entries(begin, size)}</def>'
        begin += 2 * size + 10
    definitions += '<def name="all">' + "".join(f'<ref name="d{i}"/>' for i in range(len(sizes))) + "</def>"
    definitions += '<def name="two"><ref name="d3"/><ref name="d4"/></def>'
    definitions += f'<def name="unused">{entries(0, 300)}</def><def name="empty"></def>'
    devices = ""
    contents = [("<ref name='all'/>", sum(sizes)), ("<ref name='empty'/>", 0), ("<ref name='two'/>", 505)]
    contents += [(f"<ref name='d{i}'/>", size) for i, size in enumerate(sizes)] * 2
    contents += [(entries(begins[3] - 8, 2) + "<ref name='d3'/>" + entries(begins[4] - 8, 3), 257)]
    for thin_id, (content, mapped) in enumerate(contents):
        devices += (
            f'<device dev_id="{thin_id}" mapped_blocks="{mapped}" transaction="0" creation_time="0" snap_time="0">'
            f"{content}</device>"
        )
    device = restored(f"{SUPERBLOCK}{definitions}{devices}</superblock>")
    assert check(device).thins == len(contents)


def test_held_dump_restores_with_the_size_given(sample: MemoryDevice) -> None:
    out = io.StringIO()
    dump(sample, out, held=True)
    with pytest.raises(InvalidRequest, match="of a data map of 0 blocks"):
        restored(out.getvalue())
    device = restored(out.getvalue(), data_blocks=20000)
    assert xml_of(device) == out.getvalue().replace('nr_data_blocks="0"', 'nr_data_blocks="20000"')


def test_restored_metadata_is_writable(sample: MemoryDevice) -> None:
    device = restored(xml_of(sample))
    metadata = Metadata.open(device)
    metadata.create_snap(55, 1)
    map_blocks(metadata, 55, 0, 300)
    metadata.delete_thin(4)
    metadata.resize_data(40000)
    metadata.commit()
    metadata.close()
    assert check(device).summary == "clean"


@pytest.mark.parametrize("size_blocks", [1, 2, 8, 14])
def test_device_too_small(size_blocks: int, sample: MemoryDevice) -> None:
    with pytest.raises(OutOfMetadataSpace, match=f"has {size_blocks} blocks of 4096 bytes and [0-9]+ are needed"):
        restored(xml_of(sample), size_blocks * 4096)


def test_failed_restore_leaves_no_superblock() -> None:
    """Neither a valid one nor zeros, which would be taken for a device to format."""
    device = MemoryDevice(1 << 20)
    mappings = "".join(f'<single_mapping origin_block="{2 * i}" data_block="{i}" time="0"/>\n' for i in range(400))
    text = f"{SUPERBLOCK}\n{DEVICE.replace('4', '400', 1)}{mappings}<oops/></device></superblock>"
    with pytest.raises(InvalidRequest):
        restore(io.BytesIO(text.encode()), device)
    assert device.pread(0, 4096) == b"\xff" * 4096


def test_optional_attributes() -> None:
    plain = '<superblock uuid="" time="3" transaction="7" data_block_size="128" nr_data_blocks="500" metadata_snap="9">'
    assert xml_of(restored(f"{plain}</superblock>")) == f"{SUPERBLOCK}\n</superblock>\n"
    flagged = MemoryDevice(1 << 20)
    restore(io.BytesIO(GOOD.replace('flags="0"', 'flags="9"').encode()), flagged)
    assert check(flagged).needs_check
    assert 'flags="1"' in xml_of(flagged)


BAD = {
    "": "no element found",
    "junk": "not well-formed: syntax error",
    "<superblock": "not well-formed",
    GOOD + "<x/>": "junk after document element",
    "<pool/>": "line 1: <pool> where <superblock> is expected",
    f"{SUPERBLOCK}<superblock/></superblock>": "<superblock> inside <superblock>",
    GOOD.replace("<range_mapping", "<mapping"): "line 3: <mapping> inside <device>",
    GOOD.replace(RANGE, "text"): "text 'text' between the elements",
    GOOD.replace(' time="3"', ""): "line 1: <superblock> lacks the attribute 'time'",
    GOOD.replace(' time="3"', ' time="3" x="1"'): "line 1: <superblock> has the unknown attribute 'x'",
    GOOD.replace(' time="2"', ' time="2" y="1"'): "line 3: <range_mapping> has the unknown attribute 'y'",
    GOOD.replace('length="4"', 'length="-4"'): "line 3: <range_mapping> has length='-4', which is not a number",
    GOOD.replace('length="4"', 'length="0x4"'): "length='0x4', which is not a number from 0 to 18446744073709551615",
    GOOD.replace('length="4"', 'length=" 4"'): "which is not a number",
    GOOD.replace('length="4"', 'length="1_0"'): "which is not a number",
    GOOD.replace('length="4"', 'length="\u0664"'): "which is not a number",
    GOOD.replace('length="4"', 'length=""'): "which is not a number",
    GOOD.replace('length="4"', f'length="{"9" * 5000}"'): f"length='{'9' * 40}...', which is not a number",
    GOOD.replace('length="4"', f'length="{2**64}"'): "which is not a number",
    GOOD.replace('length="4"', f'length="{2**64 - 1}"'): "virtual blocks from 10 on are too many",
    GOOD.replace('length="4"', 'length="0"'): "an empty mapping of virtual block 10",
    GOOD.replace('length="4"', 'length="490"'): "leads to data block 509 of a data map of 500 blocks",
    GOOD.replace("<range", f"{RANGE}<range"): "virtual block 10 is not after 13",
    GOOD.replace('time="2"', 'time="4"'): "virtual block 10 has the time 4, after the pool's time 3",
    GOOD.replace('blocks="4"', 'blocks="5"'): "line 4: device 1 says 5 mapped blocks and lists 4",
    GOOD.replace("</device>", f"</device>{DEVICE}{RANGE}</device>"): "device 1 for the second time",
    GOOD.replace('dev_id="1"', f'dev_id="{2**24}"'): "dev_id='16777216', which is not a number from 0 to 16777215",
    GOOD.replace('data_block_size="128"', 'data_block_size="100"'): "a data block of 100 sectors",
    GOOD.replace('version="2"', 'version="3"'): "metadata of version 3; only version 2 is known",
    GOOD.replace('time="3"', f'time="{2**24}"'): "is not a number from 0 to 16777215",
    GOOD.replace(RANGE, '<ref name="a"/>'): "a reference to 'a', which is not defined before",
    GOOD.replace(DEVICE, f'<def name="a"></def><def name="a"></def>{DEVICE}'): "definition 'a' for the second time",
    GOOD.replace(RANGE + "\n</device>", RANGE + '<ref name="a"/></device>').replace(
        DEVICE, f'<def name="a">{RANGE}</def>{DEVICE}'
    ): "'a' begins at virtual block 10, not after 13",
    '<!DOCTYPE superblock [<!ENTITY a "b">]>' + GOOD: "line 1: a document type declaration",
    GOOD.replace('uuid=""', 'uuid="&a;"'): "undefined entity",
    '<?xml version="1.0" encoding="no-such-encoding"?>' + GOOD: "encoding",
    '<?xml version="1.0" encoding="base64"?>' + GOOD: "encoding",
    GOOD.replace("<device", "<!--" + "x" * (3 << 20) + "--><device"): "a single element of more than 1 MiB",
    GOOD.replace("<device", f'<device {"x" * (3 << 20)}="1"'): "a single element of more than 1 MiB",
}


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_xml_is_one_clear_line(number: int) -> None:
    text, says = list(BAD.items())[number]
    with pytest.raises(InvalidRequest) as caught:
        restore(io.BytesIO(text.encode()), MemoryDevice(1 << 20))
    assert says in caught.value.message
    assert caught.value.message.startswith("metadata XML, line ")
    assert "\n" not in caught.value.message


def test_the_billion_laughs_are_not_heard() -> None:
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 30))
    with pytest.raises(InvalidRequest, match="document type declaration"):
        restored(f"<!DOCTYPE superblock [{entities}]>{GOOD.replace(chr(34) * 2, '&a29;')}")


def test_a_data_map_as_large_as_numbers_go() -> None:
    with pytest.raises(OutOfMetadataSpace, match="more than any metadata device can have"):
        restored(GOOD.replace('nr_data_blocks="500"', f'nr_data_blocks="{2**40}"'))


def test_xml_cut_anywhere_is_refused(sample: MemoryDevice, rng: random.Random) -> None:
    content = xml_of(sample).encode()
    for _ in range(20):
        cut = rng.randrange(len(content) - len("</superblock>\n"))
        with pytest.raises(InvalidRequest):
            restore(io.BytesIO(content[:cut]), MemoryDevice(1 << 20))


def test_changed_bytes_are_refused_or_restored(rng: random.Random) -> None:
    content = GOOD.encode()
    for _ in range(500):
        changed = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.choice(b'<>"/=& 0123456789abc\x00\xff')
        try:
            restored(bytes(changed))
        except CowfsError as error:
            assert "\n" not in str(error)  # noqa: PT017


@given(st.binary(max_size=300))
def test_arbitrary_bytes(content: bytes) -> None:
    with pytest.raises(CowfsError):
        restore(io.BytesIO(content), MemoryDevice(1 << 16))


thin_mappings = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 300)), max_size=25)


@given(st.dictionaries(st.integers(0, 2**24 - 1), thin_mappings, max_size=5), st.integers(0, 9))
def test_any_pool_round_trips(thins: dict[int, list[tuple[int, int]]], time: int) -> None:
    """(gap, length) lists become mappings over a small data map, so that blocks are used by many."""
    header = f'time="{time}" transaction="1" flags="0" version="2" data_block_size="128" nr_data_blocks="1000"'
    lines = [f'<superblock uuid="" {header}>']
    for thin_id, pieces in sorted(thins.items()):
        mapped = sum(length for _, length in pieces)
        lines.append(
            f'  <device dev_id="{thin_id}" mapped_blocks="{mapped}" transaction="0" creation_time="0" snap_time="0">'
        )
        vblock = 0
        for gap, length in pieces:
            vblock += gap
            dblock = vblock * 7 % 700
            if length == 1:
                lines.append(f'    <single_mapping origin_block="{vblock}" data_block="{dblock}" time="{time}"/>')
            else:
                lines.append(
                    f'    <range_mapping origin_begin="{vblock}" data_begin="{dblock}" '
                    f'length="{length}" time="{time}"/>'
                )
            vblock += length
        lines.append("  </device>")
    text = "\n".join([*lines, "</superblock>", ""])
    assert xml_of(restored(text, 4 << 20)) == text
