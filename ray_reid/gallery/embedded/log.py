"""The log of a gallery: checksummed records, each on the disk before its write is acknowledged.

A record is a header (magic, operation, sequence number, payload length, checksum of the payload,
checksum of the header) and the payload. Checksums begin from the log's own salt, so that nothing
inside a payload can pass for a record.
"""

import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PUT, DELETE = 1, 2
MAX_PAYLOAD = 2**30
_MAGIC = b"RRg\x01"
_START = struct.Struct("<8sI")
_START_MAGIC = b"RRgLOG1\n"
_FIELDS = struct.Struct("<4sIQQI")
_CHECK = struct.Struct("<I")
_HEADER = _FIELDS.size + _CHECK.size


class Record(NamedTuple):
    """One acknowledged or at least whole write."""

    operation: int
    sequence: int
    payload: bytes
    end: int
    """Offset of the byte behind it."""


class Log:
    """An open log file; whoever writes must be the only one who does."""

    def __init__(self, file: Path, write: bool = False) -> None:
        """Open a log.

        Raises:
            ValueError: If the file does not begin as a log does.
        """
        self.file = file
        self._descriptor = os.open(file, os.O_RDWR if write else os.O_RDONLY)
        start = os.pread(self._descriptor, _START.size, 0)
        if len(start) < _START.size or not start.startswith(_START_MAGIC):
            self.close()
            raise ValueError(f"{str(file)!r} is not the log of a gallery")
        self._salt: int = _START.unpack(start)[1]
        self.end = _START.size
        self.sequence = 0

    @classmethod
    def create(cls, file: Path) -> None:
        """Write an empty log, whole on the disk when this returns."""
        with file.open("wb") as sink:
            sink.write(_START.pack(_START_MAGIC, secrets.randbits(32)))
            sink.flush()
            os.fsync(sink.fileno())

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self) -> Iterator[Record]:
        """The whole records behind those that were read or written before.

        Raises:
            ValueError: If a record is damaged: not the last, cut by a kill, but one before it.
        """
        while (record := self._at(self.end)) is not None:
            if record.sequence != self.sequence:
                raise ValueError(
                    f"{str(self.file)!r} has record {record.sequence} at byte {self.end} where "
                    f"record {self.sequence} should be; restore the gallery from a snapshot"
                )
            self.end, self.sequence = record.end, record.sequence + 1
            yield record
        later = self._later(self.end)
        if later is not None:
            raise ValueError(
                f"{str(self.file)!r} is damaged at byte {self.end}, with whole records from byte "
                f"{later} on; restore the gallery from a snapshot"
            )

    def cut(self) -> int:
        """Remove what a killed writer left behind the last whole record; returns its bytes."""
        torn = os.fstat(self._descriptor).st_size - self.end
        if torn:
            os.ftruncate(self._descriptor, self.end)
            os.fsync(self._descriptor)
        return torn

    def append(self, operation: int, payload: bytes) -> None:
        """Write a record; it is on the disk when this returns.

        Raises:
            ValueError: If the payload is larger than a record may be.
            OSError: If the disk refuses; the record may then be there, or not, until `cut`.
        """
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(
                f"the write has {len(payload):,} bytes and may have {MAX_PAYLOAD:,}; split it"
            )
        fields = _FIELDS.pack(
            _MAGIC, operation, self.sequence, len(payload), zlib.crc32(payload, self._salt)
        )
        data = memoryview(fields + _CHECK.pack(zlib.crc32(fields, self._salt)) + payload)
        end = self.end
        while data:
            written = os.pwrite(self._descriptor, data, end)
            data, end = data[written:], end + written
        os.fsync(self._descriptor)
        self.end, self.sequence = end, self.sequence + 1

    def head(self) -> bytes:
        """All bytes up to the last record that was read or written."""
        return self._bytes(0, self.end)

    def _bytes(self, start: int, length: int) -> bytes:
        parts = []
        while length and (part := os.pread(self._descriptor, length, start)):
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return b"".join(parts)

    def _at(self, offset: int) -> Record | None:
        header = self._bytes(offset, _HEADER)
        if len(header) < _HEADER or not header.startswith(_MAGIC):
            return None
        fields, check = header[: _FIELDS.size], _CHECK.unpack(header[_FIELDS.size :])[0]
        if zlib.crc32(fields, self._salt) != check:
            return None
        _, operation, sequence, length, expected = _FIELDS.unpack(fields)
        payload = self._bytes(offset + _HEADER, length)
        if len(payload) < length or zlib.crc32(payload, self._salt) != expected:
            return None
        return Record(operation, sequence, payload, offset + _HEADER + length)

    def _later(self, offset: int) -> int | None:
        """Where the next whole record begins behind a place that has none."""
        rest = self._bytes(offset, max(0, os.fstat(self._descriptor).st_size - offset))
        found = rest.find(_MAGIC, 1)
        while found >= 0:
            if self._at(offset + found) is not None:
                return offset + found
            found = rest.find(_MAGIC, found + 1)
        return None
