"""Arrow shards: the one form in which every dataset is kept, written once and memory-mapped.

A dataset is a directory `<task>/<split>/00000.arrow …` with a `<task>/manifest.json` that is
written last: without a manifest there is no dataset.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import accumulate, islice
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from palimpsest.data.example import Example, Rejected, Turn, lot
from palimpsest.data.mapped import Pictures, mapped
from palimpsest.files import read_json, sha256, whole_file, write_json

SCHEMA_VERSION = 3
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("turns", pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))),
        ("references", pa.list_(pa.string())),
        ("choices", pa.list_(pa.string())),
        ("box", pa.list_(pa.float64())),
        ("image_size", pa.list_(pa.int32())),
        ("combination", pa.string()),
        ("category", pa.string()),
        ("keyword", pa.string()),
    ]
)
WITHOUT_PICTURES = [name for name in SCHEMA.names if name != "image"]
SHARD_BYTES = 256 * 2**20
BATCH_ROWS = 256  # rows that are written together


class Shards:
    """The examples of one split, read by index from memory-mapped files.

    Errors: ValueError names the file when the manifest or a shard is missing, truncated, of
    another size than the manifest says, or of another schema.
    """

    def __init__(self, dataset: Path, split: str) -> None:
        self.dataset, self.split = dataset, split
        self.manifest = read_manifest(dataset)
        splits = self.manifest["splits"]
        if split not in splits:
            known = ", ".join(splits)
            raise ValueError(f"{dataset}/manifest.json: no split {split!r}; there is: {known}")
        opened = [_open(dataset, shard) for shard in splits[split]["shards"]]
        tables = [table for _, table in opened]
        self.table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
        self.rows: Sequence[int] = range(self.table.num_rows)
        columns = [self.table[name].chunks for name in WITHOUT_PICTURES]
        self._batches = list(zip(*columns, strict=True))
        self._pictures = [
            Pictures(file, c) for file, table in opened for c in table["image"].chunks
        ]
        self._ends = list(accumulate(len(ids) for ids, *_ in self._batches))

    def sample(self, count: int) -> Shards:
        """Return these shards with only so many of their examples, in the order of the split.

        They are those whose ids have the smallest hashes: the same on every machine, and a larger
        sample holds the smaller ones.
        """
        sampled = copy(self)
        lots = [lot(id) for id in self.ids]
        chosen = sorted(range(len(self)), key=lots.__getitem__)[:count]
        sampled.rows = [self.rows[i] for i in sorted(chosen)]
        return sampled

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        batch = bisect_right(self._ends, row)
        columns = self._batches[batch]
        place = row - self._ends[batch] + len(columns[0])
        values = (column[place].as_py() for column in columns)
        found = dict(zip(WITHOUT_PICTURES, values, strict=True))
        return to_example({**found, "image": self._pictures[batch][place]})

    @property
    def ids(self) -> list[str]:
        """The ids in order, without reading a picture."""
        return self._columns("id")["id"].to_pylist()

    def characters(self) -> list[int]:
        """Return the length of every conversation, as `example.characters` tells that of one."""
        import pyarrow.compute as pc  # 40 ms, for which most commands need not wait

        turns = self._columns("turns")["turns"]
        texts = pc.list_flatten(turns)
        lengths = sum(pc.utf8_length(pc.struct_field(texts, [k])).to_numpy() for k in (0, 1))
        before = np.concatenate([[0], np.cumsum(lengths)])  # each turn, and after the last
        ends = np.cumsum(pc.list_value_length(turns).to_numpy())
        return np.diff(before[ends], prepend=0).tolist()

    def without_pictures(self) -> Iterator[Example]:
        """The examples in order with no image, and without reading one."""
        table = self._columns(*WITHOUT_PICTURES)
        for batch in table.to_batches(max_chunksize=BATCH_ROWS):
            for row in batch.to_pylist():
                yield to_example({**row, "image": None})

    def _columns(self, *names: str) -> pa.Table:
        """Some columns of these examples; a sample's are copied."""
        table = self.table.select(names)
        whole = len(self.rows) == table.num_rows
        return table if whole else table.take(pa.array(self.rows, pa.int64()))


def write_dataset(
    dataset: Path, splits: dict[str, Iterable[Example | Rejected]], about: dict[str, Any]
) -> dict[str, Any]:
    """Write the shards of every split and then the manifest; return the manifest.

    `about` is kept in the manifest: the task's fingerprint, sources, licence. A rejected record
    is listed with its file, line and reason; a duplicate id is an error.
    """
    (dataset / "manifest.json").unlink(missing_ok=True)
    manifest: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **about, "splits": {}}
    for split, records in splits.items():
        shutil.rmtree(dataset / split, ignore_errors=True)
        rejected: list[Rejected] = []
        accepted = _accepted(records, rejected, dataset / split)
        shards = _write_shards(dataset, split, accepted)
        manifest["splits"][split] = {
            "examples": sum(shard["examples"] for shard in shards),
            "shards": shards,
            "rejected": [vars(r) for r in rejected],
        }
    write_json(dataset / "manifest.json", manifest)
    return manifest


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write a single Arrow file of examples outside any dataset, such as a rehearsal buffer."""
    with (
        whole_file(path) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        writer.write_table(pa.Table.from_pylist([to_row(e) for e in examples], SCHEMA))


def read_examples(path: Path) -> list[Example]:
    """Read what `write_examples` wrote."""
    _, table = _map(path)
    return [to_example(row) for row in table.to_pylist()]


def read_manifest(dataset: Path) -> dict[str, Any]:
    """Read a dataset's manifest; ValueError when it is missing or of another schema version."""
    manifest = read_json(dataset / "manifest.json")
    if (found := manifest.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(
            f"{dataset}/manifest.json: schema_version is {found}, this version of Palimpsest "
            f"reads {SCHEMA_VERSION}; remove {dataset} to convert it anew"
        )
    return manifest


def verify(dataset: Path, *splits: str) -> None:
    """Compare the shards of some splits, or of all, with their checksums in the manifest.

    Errors: ValueError names a shard that differs.
    """
    known = read_manifest(dataset)["splits"]
    shards = [shard for split in splits or known for shard in known[split]["shards"]]
    paths = [dataset / shard["file"] for shard in shards]
    for path, shard in zip(paths, shards, strict=True):
        _check_size(path, shard)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(sha256, paths))
    for path, shard, checksum in zip(paths, shards, found, strict=True):
        if checksum != shard["sha256"]:
            raise ValueError(
                f"{path}: checksum differs from {dataset}/manifest.json; the file was changed "
                f"or damaged. Remove {dataset} to convert it anew"
            )


def to_row(example: Example) -> dict[str, Any]:
    """Return the Arrow row of an example."""
    return {**vars(example), "turns": [vars(turn) for turn in example.turns]}


def to_example(row: dict[str, Any]) -> Example:
    """Return the example of an Arrow row."""
    return Example(
        id=row["id"],
        image=row["image"],
        turns=tuple(Turn(**turn) for turn in row["turns"]),
        references=tuple(row["references"]),
        choices=tuple(row["choices"]),
        box=tuple(row["box"]) if row["box"] is not None else None,
        image_size=tuple(row["image_size"]) if row["image_size"] is not None else None,
        combination=row["combination"],
        category=row["category"],
        keyword=row["keyword"],
    )


def _accepted(
    records: Iterable[Example | Rejected], rejected: list[Rejected], where: Path
) -> Iterator[Example]:
    seen: set[str] = set()
    for record in records:
        if isinstance(record, Rejected):
            rejected.append(record)
        elif record.id in seen:
            raise ValueError(f"{where}: example id {record.id!r} occurs twice; a split has it once")
        else:
            seen.add(record.id)
            yield record


def _write_shards(dataset: Path, split: str, examples: Iterator[Example]) -> list[dict[str, Any]]:
    """Write the shards of a split; return the manifest entry of each.

    The checksum of one is computed while the next is written.
    """
    with ThreadPoolExecutor(1) as pool:
        written = [
            (path, count, pool.submit(sha256, path))
            for path, count in _shards(dataset / split, examples)
        ]
        return [
            {
                "file": str(path.relative_to(dataset)),
                "examples": count,
                "bytes": path.stat().st_size,
                "sha256": checksum.result(),
            }
            for path, count, checksum in written
        ]


def _shards(directory: Path, examples: Iterator[Example]) -> Iterator[tuple[Path, int]]:
    """Write shards of about SHARD_BYTES in constant memory; yield path and examples of each."""
    batches = _batches(examples)
    batch = next(batches, None)
    number = 0
    while batch is not None:
        path = directory / f"{number:05}.arrow"
        count = size = 0
        with (
            whole_file(path) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA) as writer,
        ):
            while batch is not None and size < SHARD_BYTES:
                writer.write_batch(batch)
                count, size = count + batch.num_rows, size + batch.nbytes
                batch = next(batches, None)
        yield path, count
        number += 1


def _batches(examples: Iterator[Example]) -> Iterator[pa.RecordBatch]:
    while rows := [to_row(example) for example in islice(examples, BATCH_ROWS)]:
        yield pa.RecordBatch.from_pylist(rows, SCHEMA)


def _open(dataset: Path, shard: dict[str, Any]) -> tuple[mmap, pa.Table]:
    path = dataset / shard["file"]
    _check_size(path, shard)
    file, table = _map(path)
    if table.num_rows != shard["examples"]:
        raise ValueError(
            f"{path}: holds {table.num_rows} examples, the manifest says {shard['examples']}"
        )
    return file, table


def _check_size(path: Path, shard: dict[str, Any]) -> None:
    if not path.exists():
        raise ValueError(f"{path}: shard is missing; remove {path.parents[1]} to convert it anew")
    if (size := path.stat().st_size) != shard["bytes"]:
        raise ValueError(
            f"{path}: has {size} bytes, the manifest says {shard['bytes']}; the file is truncated "
            f"or changed. Remove {path.parents[1]} to convert it anew"
        )


def _map(path: Path) -> tuple[mmap, pa.Table]:
    file, table = mapped(path)
    if table.schema != SCHEMA:
        raise ValueError(f"{path}: columns differ from schema version {SCHEMA_VERSION}")
    return file, table
