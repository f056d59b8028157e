"""An io_manager of libext2fs that reads and writes through a `MetadataCache`.

The library calls back into Python for every block. A Python exception cannot cross its C frames: the callback
answers with an error code, the exception is kept here, and `Filesystem.call` raises it, as itself, when the library
returns. Block counts below zero mean bytes; the block size is the library's own, 1024 until it knows better.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from cowfs.ext4.library import libext2fs
from cowfs.ext4.library.libext2fs import Library
from cowfs.ext4.library.metadata_cache import MetadataCache


class Channel:
    """One io_manager with one io_channel. It must live as long as the ext2_filsys opened with it."""

    def __init__(self, library: Library, cache: MetadataCache) -> None:
        self.failure: BaseException | None = None
        self._ffi = library.ffi
        self._cache = cache
        self._name = self._ffi.new("char[]", b"cowfs")
        self._callbacks: list[Any] = []
        self.manager = self._make_manager()
        self.channel = self._ffi.new("struct struct_io_channel *")

    def _make_manager(self) -> Any:
        manager = self._ffi.new("struct struct_io_manager *")
        manager.magic = libext2fs.MAGIC_IO_MANAGER
        manager.name = self._name
        handlers = {
            "open": (self._open, libext2fs.SHORT_READ),
            "close": (self._nothing, libext2fs.SHORT_WRITE),
            "set_blksize": (self._set_block_size, libext2fs.SHORT_READ),
            "read_blk": (self._read, libext2fs.SHORT_READ),
            "read_blk64": (self._read, libext2fs.SHORT_READ),
            "write_blk": (self._write, libext2fs.SHORT_WRITE),
            "write_blk64": (self._write, libext2fs.SHORT_WRITE),
            "write_byte": (self._write_byte, libext2fs.SHORT_WRITE),
            "flush": (self._nothing, libext2fs.SHORT_WRITE),
            "set_option": (self._nothing, libext2fs.SHORT_WRITE),
            "discard": (self._unsupported, libext2fs.SHORT_WRITE),
            "cache_readahead": (self._unsupported, libext2fs.SHORT_READ),
            "zeroout": (self._zero_out, libext2fs.SHORT_WRITE),
        }
        fields = dict(self._ffi.typeof("struct struct_io_manager").fields)
        for name, (handler, error) in handlers.items():
            callback = self._ffi.callback(fields[name].type, handler, error=error, onerror=self.keep_failure)
            self._callbacks.append(callback)
            setattr(manager, name, callback)
        return manager

    def keep_failure(self, _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None) -> None:
        """Remember the first exception of a callback; later ones are mostly its consequences."""
        if self.failure is None:
            self.failure = error

    def _open(self, _name: Any, _flags: int, result: Any) -> int:
        channel = self.channel
        channel.magic = libext2fs.MAGIC_IO_CHANNEL
        channel.manager = self.manager
        channel.name = self._name
        channel.block_size = 1024
        channel.refcount = 1
        result[0] = channel
        return 0

    def _set_block_size(self, channel: Any, block_bytes: int) -> int:
        channel.block_size = block_bytes
        return 0

    def _read(self, channel: Any, block: int, count: int, target: Any) -> int:
        block_bytes = channel.block_size
        cache = self._cache
        if count == 1 and block_bytes == cache.block_bytes:
            data = cache.read(block)
        else:
            data = cache.read_bytes(block * block_bytes, count * block_bytes if count > 0 else -count)
        self._ffi.memmove(target, data, len(data))
        return 0

    def _write(self, channel: Any, block: int, count: int, source: Any) -> int:
        block_bytes = channel.block_size
        data = bytes(self._ffi.buffer(source, count * block_bytes if count > 0 else -count))
        if count == 1 and block_bytes == self._cache.block_bytes:
            self._cache.write(block, data)
        else:
            self._cache.write_bytes(block * block_bytes, data)
        return 0

    def _write_byte(self, _channel: Any, offset: int, count: int, source: Any) -> int:
        self._cache.write_bytes(offset, bytes(self._ffi.buffer(source, count)))
        return 0

    def _zero_out(self, channel: Any, block: int, count: int) -> int:
        for number in range(block, block + count):
            self._cache.write_bytes(number * channel.block_size, bytes(channel.block_size))
        return 0

    def _nothing(self, *_arguments: Any) -> int:
        return 0

    def _unsupported(self, *_arguments: Any) -> int:
        return libext2fs.UNIMPLEMENTED
