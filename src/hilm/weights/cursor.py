"""Reading a header from front to back, in windows of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hilm.errors import TruncatedFile

if TYPE_CHECKING:
    from collections.abc import Callable


class Cursor:
    """A position in a file; at most one window of the file is in memory.

    Windows double while the file is read through. Behind a jump over more than the next one they start
    small again, so that headers strewn among weights cost few of these.

    Args:
        read: ``read(start, stop)`` returns that byte range of the file.
        size: Length of the file in bytes.
        first: Bytes of the first window.
        last: Bytes of the longest.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, first: int, last: int) -> None:
        self.size, self.at = size, 0
        self._read, self._first, self._last = read, first, last
        self._window, self._start, self._length = b"", 0, first

    def skip(self, count: int) -> int:
        """Move on and return where it was.

        Raises:
            TruncatedFile: The file ends before.
        """
        start, self.at = self.at, self.at + count
        if self.at > self.size:
            raise TruncatedFile(f"the header needs {self.at:,} bytes or more, the file has {self.size:,}")
        return start

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        start = self.skip(count)
        end = self._start + len(self._window)
        if self.at > end:
            if start - end > self._length:
                self._length = self._first
            stop = min(max(start + self._length, self.at), self.size)
            self._window, self._start = self._read(start, stop), start
            self._length = min(2 * self._length, self._last)
        return self._window[start - self._start : self.at - self._start]

    def integer(self, width: int) -> int:
        """Read an unsigned integer of ``width`` bytes, least significant first."""
        return int.from_bytes(self.take(width), "little")
