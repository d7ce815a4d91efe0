"""A publisher's dataset -> shards of one task, every record looked at on the way.

A record that is no good example is left out and listed in the manifest with the reason; none is
dropped silently. Twelve test examples are written beside the shards for the report's gallery.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from palimpsest.data.example import Example, Rejected, lot
from palimpsest.data.shards import write_dataset
from palimpsest.files import sha256, whole_file

GALLERY_SIZE = 12
SHOWN = 5  # rejected records in a message
LINE_EVERY = 60.0  # seconds
TOGETHER = 16  # records that a thread is given at a time
AHEAD = 4  # times as many for each thread are read before the first of them is needed
NEEDED = ("train", "test")  # if the reader does not say otherwise
GALLERY_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("question", pa.string()),
        ("references", pa.list_(pa.string())),
    ]
)

Record = Example | Rejected


def convert(
    task: str,
    *,
    reader: str,
    source: dict[str, Any],
    prompt: str,
    about: dict[str, Any],
    most_rejected: float,
    out: Path,
    root: Path,
    threads: int = 1,
) -> dict[str, Any]:
    """Write the dataset of a task to `out` and return its manifest.

    `reader` is a module of `data/readers`, which reads `source` below `root`; `prompt` is the
    task's template; `about` (fingerprint, licence) goes into the manifest with task, source and
    the publisher's files. `most_rejected` is the share of a split's records that may be no
    examples. Pictures are looked at in so many `threads`; what is written does not depend on them.

    ValueError if the source lacks a split that is needed, a split has no good example or too many
    records that are none, or a file is missing or damaged.
    """
    module = import_module(f"palimpsest.data.readers.{reader}")
    names = module.splits(source, root)
    needed = getattr(module, "NEEDED", NEEDED)
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"task {task!r}: its source has no split {' and no '.join(map(repr, missing))}; "
            f"there is: {', '.join(names) or 'none'}"
        )

    files = module.files(source)
    notes = module.notes(source, root) if hasattr(module, "notes") else {}

    def records(split: str) -> Iterator[Record]:
        where = str(root / files[split]) if split in files else f"{reader} {split}"
        faults = _with_faults(module.read(source, split, root), threads)
        checked = _told(_checked(faults, where, prompt, most_rejected), f"{task} {split}")
        return _with_gallery(checked, out / "gallery.parquet") if split == "test" else checked

    return write_dataset(
        out,
        {split: records(split) for split in names},
        {"task": task, **about, "source": source, "files": _known_by(files, root), **notes},
    )


def fault(example: Example) -> str | None:
    """Return what is wrong with an example, or None."""
    if not example.turns:
        return "there is no question"
    for turn in example.turns:
        if not turn.question.strip():
            return "a question is empty"
        if not turn.answer.strip():
            return "an answer is empty"
    if not example.references or not all(r.strip() for r in example.references):
        return "there is no reference, or an empty one"
    if example.box is not None:
        x0, y0, x1, y1 = example.box
        if not (x0 < x1 and y0 < y1):
            return f"the box {example.box} has no area"
    return None if example.image is None else _fault_of_picture(example.image, example.image_size)


def _fault_of_picture(image: bytes, size: tuple[int, int] | None) -> str | None:
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.load()
    except UnidentifiedImageError:  # its message holds an address in memory, another each time
        return "the picture does not decode (UnidentifiedImageError: it has no known format)"
    except Exception as error:  # damaged bytes make Pillow raise almost anything
        return f"the picture does not decode ({type(error).__name__}: {error})"
    if size is not None and picture.size != size:
        return f"image_size says {size}, the picture has {picture.size}"
    return None


def _known_by(files: dict[str, str], root: Path) -> dict[str, dict[str, Any]]:
    """Return size and checksum of the publisher's files."""
    if missing := [str(root / file) for file in files.values() if not (root / file).is_file()]:
        raise ValueError(f"missing: {', '.join(missing)}; `palimpsest check` says how to get them")
    return {
        name: {"file": file, "bytes": (root / file).stat().st_size, "sha256": sha256(root / file)}
        for name, file in files.items()
    }


def _with_faults(records: Iterator[Record], threads: int) -> Iterator[tuple[Record, str | None]]:
    """Yield the records in order, each with its fault, if any.

    Pillow decodes without Python's lock, so that threads keep as many cores busy. What is read
    ahead is bounded.
    """
    Image.preinit()  # all formats, common ones first, before threads would load them at once
    Image.init()
    records = iter(records)
    with ThreadPoolExecutor(threads) as pool:
        looked_at: deque[Future] = deque()
        while some := list(islice(records, TOGETHER)):
            looked_at.append(pool.submit(_look_at, some))
            if len(looked_at) > AHEAD * threads:
                yield from looked_at.popleft().result()
        for future in looked_at:
            yield from future.result()


def _look_at(records: list[Record]) -> list[tuple[Record, str | None]]:
    return [(r, fault(r) if isinstance(r, Example) else None) for r in records]


def _told(records: Iterator[Record], what: str) -> Iterator[Record]:
    """Pass the records on; tell how fast in a bar in a terminal or a line a minute in a log."""
    begun = shown = time.monotonic()
    count = rejected = 0

    def tell() -> None:
        seconds = time.monotonic() - begun
        print(
            f"{what}: {count - rejected} examples, {rejected} rejected, "
            f"{count / max(seconds, 1e-9):.0f} records/s, {seconds:.0f} s",
            flush=True,
        )

    for record in tqdm(records, desc=what, unit=" records", disable=None):
        count, rejected = count + 1, rejected + isinstance(record, Rejected)
        yield record
        if not sys.stderr.isatty() and time.monotonic() - shown >= LINE_EVERY:
            shown = time.monotonic()
            tell()
    tell()


def _checked(
    records: Iterator[tuple[Record, str | None]], where: str, prompt: str, most_rejected: float
) -> Iterator[Record]:
    """Yield good examples with their prompt, and every other record as rejected.

    The line of a record that is rejected here is its number among those that the reader gave.
    """
    ids: set[str] = set()
    rejected: list[Rejected] = []
    for number, (record, wrong) in enumerate(records, start=1):
        if isinstance(record, Example):
            wrong = wrong or ("an earlier record has this id" if record.id in ids else None)
            if wrong is None:
                ids.add(record.id)
                yield record.with_prompt(prompt)
                continue
            record = Rejected(where, number, f"example {record.id!r}: {wrong}")
        rejected.append(record)
        yield record
    if not ids:
        why = f"; the first: {_line(rejected[0])}" if rejected else ""
        raise ValueError(f"{where}: not one good example{why}")
    if (share := len(rejected) / (len(ids) + len(rejected))) > most_rejected:
        raise ValueError(
            f"{where}: {len(rejected)} of {len(ids) + len(rejected)} records ({share:.1%}) are no "
            f"good examples; most_rejected of the task allows {most_rejected:.1%}.\n"
            f"{_summary(rejected)}"
        )


def _summary(rejected: list[Rejected]) -> str:
    """Count the reasons, taking those for one that differ in names and numbers, and show a few."""
    counts = Counter(re.sub(r"'.*'|\".*\"|/\S+|[\d.]+", "…", r.reason) for r in rejected)
    reasons = [f"  {count} x {reason}" for reason, count in counts.most_common()]
    return "\n".join([*reasons, "The first:", *(f"  {_line(r)}" for r in rejected[:SHOWN])])


def _line(record: Rejected) -> str:
    return f"{record.file}:{record.line}: {record.reason}"


def _with_gallery(records: Iterator[Record], path: Path) -> Iterator[Record]:
    """Pass the records on; when all have passed, write a gallery of some.

    They are those whose ids have the smallest hashes: spread over the split, the same each time.
    """
    shown: list[Example] = []
    for record in records:
        if isinstance(record, Example):
            shown = sorted([*shown, record], key=lambda e: lot(e.id))
            del shown[GALLERY_SIZE:]
        yield record
    rows = [
        {
            "id": e.id,
            "image": e.image,
            "question": e.turns[-1].question,
            "references": list(e.references),
        }
        for e in shown
    ]
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, GALLERY_SCHEMA), partial)
