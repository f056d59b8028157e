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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol, TypeAlias
from xml.parsers import expat

from cowfs.blockdev import BlockDevice
from cowfs.errors import InvalidRequest, NoSuchThin
from cowfs.thinmeta.builder import MetadataBuilder, SubTree, TreeBuilder
from cowfs.thinmeta.format import FORMAT_VERSION, MAX_DATA_BLOCK, DeviceDetails, Superblock
from cowfs.thinmeta.walk import KEY_END, MetadataReader, Progress, Run, ThinEntry
from cowfs.units import MAX_SNAPSHOT_TIME, MAX_THIN_ID, is_data_block_size

_CHUNK_BYTES: Final = 1 << 16
_MAX_TAG_BYTES: Final = 1 << 20  # far more than any tag needs; what expat may have to hold at once
_U32_MAX: Final = 2**32 - 1
_U64_MAX: Final = 2**64 - 1


class ByteSource(Protocol):
    """Where XML comes from: a file opened in binary mode, or anything with its `read`."""

    def read(self, size: int, /) -> bytes: ...


class TextSink(Protocol):
    """Where text is written: an open text file, or anything with its `write`."""

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


# --------------------------------------------------------------------------------------------- restore


def restore(
    stream: ByteSource, device: BlockDevice, *, data_blocks: int | None = None, progress: Progress | None = None
) -> Superblock:
    """Write new metadata that holds what the XML says; everything on the device before is lost.

    The XML is read in pieces, so its length costs no memory. It is taken strictly: unknown elements and attributes,
    mappings out of order or outside of the data map, a wrong number of mapped blocks are errors.

    Args:
        data_blocks: size of the data map, instead of what the XML says (a dump of a metadata snapshot says 0).
        progress: called with (bytes read, 0) now and then.

    Raises:
        InvalidRequest: the XML is wrong; names the line. The device then holds no valid superblock.
        OutOfMetadataSpace: the device is too small; says how many blocks it takes.
    """
    reader = _XmlReader(device, data_blocks)
    done = 0
    while chunk := stream.read(_CHUNK_BYTES):
        reader.feed(chunk)
        done += len(chunk)
        if progress:
            progress(done, 0)
    return reader.finish()


class _Attributes:
    """The attributes of one element, taken one by one; what is left over is an error."""

    def __init__(self, reader: _XmlReader, element: str, values: dict[str, str]) -> None:
        self._reader = reader
        self._element = element
        self._values = values

    def text(self, name: str) -> str:
        value = self._values.pop(name, None)
        if value is None:
            self._reader.fail(f"<{self._element}> lacks the attribute '{name}'")
        return value

    def number(self, name: str, maximum: int = _U64_MAX, default: int | None = None) -> int:
        if default is not None and name not in self._values:
            return default
        value = self.text(name)
        if not (value.isascii() and value.isdigit() and len(value) <= 20 and int(value) <= maximum):
            shown = value if len(value) <= 40 else f"{value[:40]}..."
            self._reader.fail(f"<{self._element}> has {name}='{shown}', which is not a number from 0 to {maximum}")
        return int(value)

    def numbers(self, *names: str) -> list[int]:
        """The values of exactly these attributes. There may be millions of elements, so the common case is short."""
        values = [self._values.get(name, "") for name in names]
        digits = "".join(values)
        if (
            len(self._values) == len(names)
            and all(values)
            and digits.isdigit()
            and digits.isascii()
            and len(digits) < 80
        ):
            numbers = list(map(int, values))
            if max(numbers) <= _U64_MAX:
                return numbers
        numbers = [self.number(name) for name in names]
        self.end()
        return numbers

    def end(self) -> None:
        if self._values:
            self._reader.fail(f"<{self._element}> has the unknown attribute '{min(self._values)}'")


@dataclass(frozen=True, slots=True)
class _Definition:
    """Mappings to be shared, in leaves that were written."""

    name: str
    leaves: list[SubTree]
    end_vblock: int
    mapped: int


class _XmlReader:
    """A strict reader for one document, driven by expat, which feeds a MetadataBuilder.

    The open elements decide what may come: superblock > (device | def) > (single_mapping | range_mapping | ref).
    """

    def __init__(self, device: BlockDevice, data_blocks: int | None) -> None:
        self._device = device
        self._data_blocks = data_blocks
        self._builder: MetadataBuilder | None = None
        self._time = self._transaction_id = self._flags = 0
        self._open: list[str] = []
        self._tree: TreeBuilder | None = None
        self._next_vblock = 0
        self._mapped = 0
        self._thin_id = 0
        self._details = DeviceDetails(0, 0, 0, 0)
        self._def_name = ""
        self._definitions: dict[str, _Definition] = {}
        self._references: list[_Definition] = []  # what the open tree begins with, not pushed yet
        self._is_only_references = True
        self._shared_trees: dict[tuple[str, ...], SubTree] = {}  # by the definitions they consist of
        self._fed = 0
        self._parser = parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        parser.buffer_text = True

    def feed(self, chunk: bytes, *, is_last: bool = False) -> None:
        self._fed += len(chunk)
        try:
            self._parser.Parse(chunk, is_last)
        except expat.ExpatError as error:
            self.fail(f"not well-formed: {expat.ErrorString(error.code)}", error.lineno)
        except (LookupError, ValueError) as error:
            self.fail(f"its encoding is not known: {error}")
        if self._fed - max(self._parser.CurrentByteIndex, 0) > _MAX_TAG_BYTES:
            self.fail("a single element of more than 1 MiB")

    def finish(self) -> Superblock:
        self.feed(b"", is_last=True)
        if self._builder is None:
            self.fail("no superblock")
        return self._builder.finish(time=self._time, transaction_id=self._transaction_id, flags=self._flags)

    def fail(self, message: str, line: int | None = None) -> NoReturn:
        raise InvalidRequest(f"metadata XML, line {line or self._parser.CurrentLineNumber}: {message}")

    # ------------------------------------------------------------------ expat

    def _start(self, name: str, values: dict[str, str]) -> None:
        inside = self._open[-1] if self._open else ""
        handler = _HANDLERS.get((inside, name))
        if handler is None:
            self.fail(f"<{name}> inside <{inside}>" if inside else f"<{name}> where <superblock> is expected")
        self._open.append(name)
        attributes = _Attributes(self, name, values)
        handler(self, attributes)

    def _end(self, name: str) -> None:
        self._open.pop()
        if name == "device":
            self._end_device()
        elif name == "def":
            self._end_def()

    def _text(self, text: str) -> None:
        if text.strip():
            self.fail(f"text '{text.strip()[:40]}' between the elements")

    def _doctype(self, *_: object) -> None:
        self.fail("a document type declaration, which metadata must not have")

    # ------------------------------------------------------------------ elements

    def _superblock(self, attributes: _Attributes) -> None:
        attributes.text("uuid")
        self._time = attributes.number("time", MAX_SNAPSHOT_TIME)
        self._transaction_id = attributes.number("transaction")
        self._flags = attributes.number("flags", _U32_MAX, default=0) & Superblock.NEEDS_CHECK
        version = attributes.number("version", _U32_MAX, default=FORMAT_VERSION)
        block_sectors = attributes.number("data_block_size", _U32_MAX)
        blocks = attributes.number("nr_data_blocks", MAX_DATA_BLOCK + 1)
        attributes.number("metadata_snap", default=0)
        attributes.end()
        if version != FORMAT_VERSION:
            self.fail(f"metadata of version {version}; only version {FORMAT_VERSION} is known")
        if not is_data_block_size(block_sectors):
            self.fail(f"a data block of {block_sectors} sectors: it must be a multiple of 128, up to 2097152")
        blocks = blocks if self._data_blocks is None else self._data_blocks
        self._builder = MetadataBuilder(self._device, data_block_sectors=block_sectors, data_blocks=blocks)

    def _device_element(self, attributes: _Attributes) -> None:
        builder = self._require_builder()
        self._thin_id = attributes.number("dev_id", MAX_THIN_ID)
        self._details = DeviceDetails(
            attributes.number("mapped_blocks"),
            attributes.number("transaction"),
            attributes.number("creation_time", _U32_MAX),
            attributes.number("snap_time", _U32_MAX),
        )
        attributes.end()
        if builder.has_thin(self._thin_id):
            self.fail(f"device {self._thin_id} for the second time")
        self._begin_tree()

    def _end_device(self) -> None:
        details = self._details
        if details.mapped_blocks != self._mapped:
            self.fail(f"device {self._thin_id} says {details.mapped_blocks} mapped blocks and lists {self._mapped}")
        # Devices made of the same definitions share everything, so later ones need no nodes at all.
        key = tuple(definition.name for definition in self._references)
        known = self._shared_trees.get(key) if self._is_only_references and key else None
        if known is None:
            self._push_references()
        subtree = self._require_builder().add_thin(
            self._thin_id,
            known or self._require_tree(),
            transaction_id=details.transaction_id,
            creation_time=details.creation_time,
            snapshotted_time=details.snapshotted_time,
        )
        if self._is_only_references and key:
            self._shared_trees[key] = subtree

    def _single(self, attributes: _Attributes) -> None:
        vblock, dblock, time = attributes.numbers("origin_block", "data_block", "time")
        self._map(Run(vblock, dblock, 1, time))

    def _range(self, attributes: _Attributes) -> None:
        self._map(Run(*attributes.numbers("origin_begin", "data_begin", "length", "time")))

    def _map(self, run: Run) -> None:
        vblock, dblock, length, time = run
        nr_blocks = self._require_builder().data.nr_blocks
        if not length:
            self.fail(f"an empty mapping of virtual block {vblock}")
        if vblock < self._next_vblock:
            self.fail(f"virtual block {vblock} is not after {self._next_vblock - 1}, which is mapped before it")
        if vblock + length > KEY_END:
            self.fail(f"{length} virtual blocks from {vblock} on are too many")
        if dblock + length > nr_blocks:
            last = dblock + length - 1
            self.fail(f"virtual block {vblock} leads to data block {last} of a data map of {nr_blocks} blocks")
        if time > self._time:
            self.fail(f"virtual block {vblock} has the time {time}, after the pool's time {self._time}")
        self._is_only_references = False
        if self._references:
            self._push_references()
        self._require_tree().push_run(run)
        self._next_vblock = vblock + length
        self._mapped += length

    def _def(self, attributes: _Attributes) -> None:
        self._def_name = attributes.text("name")
        attributes.end()
        if self._def_name in self._definitions:
            self.fail(f"definition '{self._def_name}' for the second time")
        self._begin_tree(to_share=True)

    def _end_def(self) -> None:
        self._push_references()
        leaves = self._require_tree().close_leaves()
        self._definitions[self._def_name] = _Definition(self._def_name, leaves, self._next_vblock, self._mapped)

    def _ref(self, attributes: _Attributes) -> None:
        name = attributes.text("name")
        attributes.end()
        definition = self._definitions.get(name)
        if definition is None:
            self.fail(f"a reference to '{name}', which is not defined before")
        if not definition.mapped:
            return
        first = definition.leaves[0].first_key
        if first < self._next_vblock:
            self.fail(f"'{name}' begins at virtual block {first}, not after {self._next_vblock - 1}")
        self._references.append(definition)
        if not self._is_only_references:
            self._push_references()
        self._next_vblock = definition.end_vblock
        self._mapped += definition.mapped

    def _push_references(self) -> None:
        """Put the leaves of the definitions that wait into the tree."""
        for definition in self._references:
            for leaf in definition.leaves:
                self._require_tree().push_leaf(leaf)
        self._references = []

    def _begin_tree(self, *, to_share: bool = False) -> None:
        self._tree = self._require_builder().mapping_tree(to_share=to_share)
        self._next_vblock = self._mapped = 0
        self._references = []
        self._is_only_references = True

    def _require_builder(self) -> MetadataBuilder:
        assert self._builder is not None  # <superblock> encloses everything else
        return self._builder

    def _require_tree(self) -> TreeBuilder:
        assert self._tree is not None  # <device> or <def> encloses every mapping
        return self._tree


_Handler: TypeAlias = Callable[[_XmlReader, _Attributes], None]
_HANDLERS: Final[dict[tuple[str, str], _Handler]] = {
    ("", "superblock"): _XmlReader._superblock,
    ("superblock", "device"): _XmlReader._device_element,
    ("superblock", "def"): _XmlReader._def,
    **{
        (parent, name): handler
        for parent in ("device", "def")
        for name, handler in (
            ("single_mapping", _XmlReader._single),
            ("range_mapping", _XmlReader._range),
            ("ref", _XmlReader._ref),
        )
    },
}
