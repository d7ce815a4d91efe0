"""Pictures read from a mapped file are those that Arrow reads from it."""

from __future__ import annotations

import mmap

import pyarrow as pa
import pytest

from palimpsest.data.mapped import Pictures, mapped

BATCHES = [
    [b"first", None, b"", b"x" * 3 * mmap.PAGESIZE],
    [None, None],
    [b"", b""],
    [bytes([k]) * k for k in range(1, 20)],
    [None if k % 3 else bytes([k]) for k in range(20)],
]


@pytest.fixture
def path(tmp_path):
    path, schema = tmp_path / "pictures.arrow", pa.schema([("image", pa.binary())])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in BATCHES:
            writer.write_batch(pa.RecordBatch.from_pylist([{"image": b} for b in batch], schema))
    return path


def test_every_picture_is_read_as_it_was_written(path):
    file, table = mapped(path)
    columns = table["image"].chunks
    assert [[Pictures(file, c)[k] for k in range(len(c))] for c in columns] == BATCHES


def test_a_part_of_a_batch_begins_where_it_is_cut_off(path):
    file, table = mapped(path)
    for batch, column in zip(BATCHES, table["image"].chunks, strict=True):
        part = Pictures(file, column[1:])
        assert [part[k] for k in range(len(batch) - 1)] == batch[1:]


def test_the_kernel_is_told_of_a_picture_from_the_page_of_its_first_byte_to_its_last(path):
    asked = []

    class Told(mmap.mmap):
        def madvise(self, advice, start, length):
            asked.append((advice, start, length))
            return super().madvise(advice, start, length)

    with path.open("rb") as opened:
        file = Told(opened.fileno(), 0, prot=mmap.PROT_READ)
    within = pa.ipc.open_file(pa.py_buffer(file)).read_all()["image"].chunk(0)
    picture = Pictures(file, within)[3]
    ((advice, start, length),) = asked
    assert (advice, start % mmap.PAGESIZE) == (mmap.MADV_WILLNEED, 0)
    at = file.find(picture)
    assert 0 <= at - start < mmap.PAGESIZE
    assert start + length == at + len(picture)


@pytest.mark.parametrize(
    "content", [b"", b"ARROW1 is no file", None], ids=["empty", "text", "none"]
)
def test_what_is_no_arrow_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "some.arrow"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.arrow: not a readable Arrow file"):
        mapped(path)
