"""What of a task's files is on disk: counted, and pictures looked for, without converting them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from palimpsest.data.json_array import elements
from palimpsest.data.picture_files import Bad, Pictures

SAMPLE = 50  # pictures of a split that are looked for
ABOUT = 0.1  # share by which a count may differ from one that is not certain


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    what: str
    state: Literal["there", "missing", "broken", "differs"]
    note: str


def look(
    split: str,
    path: Path,
    expected: int | str,
    picture_of: Callable[[Any], str | None],
    pictures: Pictures,
    records: Callable[[Path], Iterator[Any]] = elements,
) -> Iterator[Finding]:
    """Count the records of a split's file, and look for a sample of its pictures.

    `records` yields those of a file, one by one: the elements of an array if not told otherwise.
    `expected` is a number of records, or "about 12000" where it is not certain. The sample is drawn
    from all records, the same each time.
    """
    if not path.exists():
        yield Finding(split, "missing", f"{path} ({_said(expected)})")
        return
    drawn, count, chance = [], 0, random.Random(0)
    try:
        for count, record in enumerate(records(path), start=1):
            place = len(drawn) if count <= SAMPLE else chance.randrange(count)
            if place < SAMPLE:
                drawn[place : place + 1] = [record]
    except ValueError as error:
        yield Finding(split, "broken", str(error))
        return
    yield Finding(split, _state(count, expected), f"{path}: {count:,} ({_said(expected)})")
    yield _sampled(split, drawn, picture_of, pictures)


def _state(count: int, expected: int | str) -> Literal["there", "differs"]:
    about = _number(expected)
    allowed = 0 if isinstance(expected, int) else ABOUT * about
    return "there" if abs(count - about) <= allowed else "differs"


def _said(expected: int | str) -> str:
    about = "" if isinstance(expected, int) else "about "
    return f"expected: {about}{_number(expected):,} records"


def _number(expected: int | str) -> int:
    return int(str(expected).removeprefix("about "))


def _sampled(
    split: str,
    records: list[Any],
    picture_of: Callable[[Any], str | None],
    pictures: Pictures,
) -> Finding:
    """Look for the pictures of some records."""
    found, faults = 0, []
    for record in records:
        try:
            if name := picture_of(record):
                found += pictures.path(name).stat().st_size > 0
        except (Bad, OSError, ValueError) as error:
            faults.append(str(error))
    what, of = f"{split} pictures", f"{found} of {found + len(faults)} that were looked for"
    if faults:
        return Finding(what, "broken" if found else "missing", f"{of}; {faults[0]}")
    return Finding(what, "there", of)
