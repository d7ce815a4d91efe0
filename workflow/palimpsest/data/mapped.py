"""Arrow files in memory as the kernel maps them, and pictures read from them in one go.

A page that is not in memory is read when it is touched, and as much around it as the kernel reads
ahead, which may be megabytes: a picture drawn at random takes several such waits. So the kernel is
told beforehand which bytes are wanted.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa


def mapped(path: Path) -> tuple[mmap.mmap, pa.Table]:
    """Return a file and the table in it, of which nothing but the columns' places is read.

    Errors: ValueError if it is no Arrow file.
    """
    try:
        with path.open("rb") as opened:
            file = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        return file, pa.ipc.open_file(pa.py_buffer(file)).read_all()
    except (FileNotFoundError, ValueError) as error:  # Arrow's, or mmap's of an empty file
        raise ValueError(f"{path}: not a readable Arrow file ({error})") from None


class Pictures:
    """The pictures of a record batch of a mapped file."""

    def __init__(self, file: mmap.mmap, column: pa.BinaryArray) -> None:
        self.file, self.first = file, column.offset
        self.valid, ends, data = column.buffers()
        self.ends = np.frombuffer(ends, np.int32)  # of each picture and, at first, of none
        self.start = data.address - pa.py_buffer(file).address if data else 0

    def __getitem__(self, row: int) -> bytes | None:
        """Read one, counted from the batch's first."""
        place = self.first + row
        if self.valid and not self.valid[place // 8] >> place % 8 & 1:
            return None
        begin, end = (self.start + int(self.ends[place + k]) for k in (0, 1))
        if begin < end:
            page = begin - begin % mmap.PAGESIZE
            self.file.madvise(mmap.MADV_WILLNEED, page, end - page)
        return self.file[begin:end]
