"""Bytes on their way in: appended to an upload in pieces, or awaited of a form.

Owns what is known of them while they come. What may come at all is decided in `uploads.py`.
"""

from dataclasses import dataclass
from typing import BinaryIO

from adapters.disk import Disk
from adapters.errors import UploadOverflow


@dataclass(eq=False, slots=True)
class Awaited:
    """A form of `size` bytes, of which so many have `come` to the disk."""

    tenant: str
    size: int
    come: int = 0

    @property
    def to_come(self) -> int:
        return max(0, self.size - self.come)


class Writer:
    """Appends to one upload; what was written stays, however the request ends."""

    def __init__(self, disk: Disk, file: BinaryIO, offset: int, size: int) -> None:
        self._disk, self._file, self.offset, self.size = disk, file, offset, size
        self._failed: OSError | None = None

    def write(self, data: bytes) -> None:
        """Raises UploadOverflow, and then nothing of `data` was written.

        Once the disk has failed, nothing more is written: a part of `data` may be there, and what came next would not
        follow it.
        """
        if self.offset + len(data) > self.size:
            raise UploadOverflow(self.size)
        if self._failed is not None:
            raise self._failed
        try:
            self._disk.write(self._file, data)
        except OSError as error:
            self._failed = error
            raise
        self.offset += len(data)
