"""Numbers and bytes of a file, one after the other."""

from __future__ import annotations

from gic.errors import FormatError, TruncatedError


def varint(value: int) -> bytes:
    """Unsigned LEB128, in its shortest form."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """Takes bytes from the front; running out is a :class:`TruncatedError`."""

    def __init__(self, data: bytes, what: str = "file") -> None:
        self.data = data
        self.what = what
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count > len(self.data) - self.at:
            raise TruncatedError(f"the {self.what} is truncated: it ends before the data that its header announces")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        """The next number, as :func:`varint` wrote it."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise FormatError("the header is damaged: a number is not in its shortest form")
                return value
            shift += 7
            if shift > 35:
                raise FormatError("the header is damaged: a number is too long")
