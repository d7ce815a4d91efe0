"""The reader of choice questions that are only asked: they show what a model keeps.

    mmbench     MMBench v1.0 (arXiv 2307.06281), a TSV file with the pictures in base64; a number
                in the column `image` is the index of the row that has the picture
    seed-bench  SEED-Bench (arXiv 2307.16125), the questions about one picture
    scienceqa   ScienceQA, the questions of its test split that have a picture

Question, hint and options are lines, an option beginning with `A. `, and MMBench's questions of the
source `code` are left out, as in the class StandardVLMBenchmark of Jin0316/CORE (1fe383c). CORE
scores the first 500 of each, in files of its own making; that they have their publishers' order is
deduced.
"""

from __future__ import annotations

import base64
import csv
import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from palimpsest.data.example import Example, Rejected, Turn
from palimpsest.data.fields import listing, mapping, spoken, string
from palimpsest.data.json_array import elements
from palimpsest.data.picture_files import Bad, Pictures
from palimpsest.data.readers import typed
from palimpsest.data.survey import Finding, look
from palimpsest.files import read_json

NEEDED = ("test",)  # nothing is learnt from them
LETTERS = "ABCDE"
COLUMNS = {"index", "question", "hint", "A", "B", "C", "D", "answer", "image", "source"}


class Source(BaseModel):
    """A task's `source`; all paths are below `results/downloads/`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    files: dict[str, str]  # role (of a kind's ROLES) -> file
    pictures: str | None = None  # folder of the pictures; MMBench's are in its file
    first: int | None = Field(None, gt=0)  # questions that are taken from the beginning, or all
    expected: int | str  # questions; "about 12000" if not certain


class Choices(ABC):
    """Questions in a publisher's format: which there are, and what is in one."""

    ROLES: tuple[str, ...] = ("questions",)  # the first file has the records

    def __init__(self, source: Source, root: Path) -> None:
        self.source = source
        self.files = {role: root / path for role, path in source.files.items()}
        self.pictures = Pictures({"": source.pictures} if source.pictures else {}, root)

    @abstractmethod
    def records(self, path: Path) -> Iterator[Any]:
        """Yield the records of the first file, those that are not asked too."""

    @abstractmethod
    def elsewhere(self, record: dict) -> bool:
        """Return whether a record is of another kind than those that are asked."""

    @abstractmethod
    def picture(self, record: Any) -> str | None:
        """Return the name of a record's picture, if it has a file; Bad if there is no telling."""

    @abstractmethod
    def example(self, record: dict) -> Example:
        """Return the example of a record; Bad if it is none."""

    def choice(
        self, id: str, record: dict, options: tuple[str, ...], letter: str, image: bytes
    ) -> Example:
        """Return the example of a question with its hint and options; the answer is a letter."""
        if letter not in LETTERS[: len(options)]:
            raise Bad(f"the answer is {letter!r}, none of {len(options)} options")
        hint = record.get("hint")
        lines = [string(record, "question"), *([hint] if isinstance(hint, str) and hint else [])]
        lines += [f"{name}. {option}" for name, option in zip(LETTERS, options, strict=False)]
        turn = Turn("\n".join(lines), letter)
        return Example(id, image, (turn,), (letter,), options, image_size=_size(image))


class MMBench(Choices):
    """Rows of a table. Those whose index is above a million ask an earlier one in another order."""

    def records(self, path: Path) -> Iterator[dict]:
        csv.field_size_limit(sys.maxsize)  # a field may be a picture
        try:
            with path.open(encoding="utf-8", newline="") as file:
                table = csv.DictReader(file, delimiter="\t")
                if missing := COLUMNS - set(table.fieldnames or ()):
                    raise ValueError(f"{path}: has no column {', '.join(sorted(missing))}")
                rows = list(table)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: damaged ({error}); fetch it again") from None
        except FileNotFoundError:
            raise ValueError(f"{path}: file is missing") from None
        self.encoded = {row["index"]: row["image"] for row in rows}
        yield from rows

    def elsewhere(self, record: dict) -> bool:
        return record["source"] == "code"

    def picture(self, record: dict) -> None:
        self.image(record)

    def example(self, record: dict) -> Example:
        options = tuple(record[name] for name in LETTERS if record.get(name))
        letter = string(record, "answer")
        return self.choice(string(record, "index"), record, options, letter, self.image(record))

    def image(self, record: dict) -> bytes:
        """Return the bytes of a row's picture, or of that of the row which it names."""
        text = string(record, "image")
        try:
            return base64.b64decode(self.encoded.get(text) or text, validate=True)
        except ValueError as error:
            raise Bad(f"the picture is no base64: {error}") from None


class SeedBench(Choices):
    """An array of questions, of which those about a video are passed over."""

    def records(self, path: Path) -> Iterator[Any]:
        return elements(path, "questions")

    def elsewhere(self, record: dict) -> bool:
        return record.get("data_type") == "video"

    def picture(self, record: Any) -> str:
        return string(mapping(record), "data_id")

    def example(self, record: dict) -> Example:
        options = tuple(string(record, f"choice_{letter.lower()}") for letter in LETTERS[:4])
        image, _ = self.pictures.read(self.picture(record), "")
        letter, id = string(record, "answer"), string(record, "question_id")
        return self.choice(id, record, options, letter, image)


class ScienceQa(Choices):
    """Problems by id, in the order of the split's list; those without a picture are passed over."""

    ROLES = ("problems", "splits")

    def records(self, path: Path) -> Iterator[dict]:
        problems, splits = read_json(path), read_json(self.files["splits"])
        if not isinstance(problems, dict) or not isinstance(splits, dict):
            raise ValueError(f"{path}, {self.files['splits']}: not the publisher's files")
        for id in splits.get("test", ()):
            problem = problems.get(id)
            yield {"id": id, **problem} if isinstance(problem, dict) else {"id": id}

    def elsewhere(self, record: dict) -> bool:
        return "image" in record and record["image"] is None

    def picture(self, record: dict) -> str:
        return f"{string(record, 'id')}/{string(record, 'image')}"

    def example(self, record: dict) -> Example:
        options = tuple(spoken(option, "choices") for option in listing(record, "choices"))
        right = record.get("answer")
        if type(right) is not int or not 0 <= right < len(options):
            raise Bad(f"'answer' is {right!r}, no place among {len(options)} choices")
        image, _ = self.pictures.read(self.picture(record), "")
        return self.choice(record["id"], record, options, LETTERS[right], image)


KINDS: dict[str, type[Choices]] = {
    "mmbench": MMBench,
    "seed-bench": SeedBench,
    "scienceqa": ScienceQa,
}


def splits(source: dict[str, Any], root: Path) -> tuple[str, ...]:
    """Return the names of the splits; ValueError says which key of the source is wrong."""
    check(source)
    return ("test",)


def files(source: dict[str, Any]) -> dict[str, str]:
    """Return the files besides pictures, below the downloads: of the split, and by role."""
    checked = check(source)
    first, *others = KINDS[checked.kind].ROLES
    return {"test": checked.files[first], **{role: checked.files[role] for role in others}}


def check(source: dict[str, Any]) -> Source:
    """Return a task's source with its types; ValueError names what is wrong."""
    checked = typed(Source, source, "choices")
    if checked.kind not in KINDS:
        raise ValueError(
            f"reader 'choices': source.kind is {checked.kind!r}; there are {', '.join(KINDS)}"
        )
    if set(checked.files) != set(needed := KINDS[checked.kind].ROLES):
        raise ValueError(
            f"reader 'choices': source.files of kind {checked.kind!r} names {', '.join(needed)}; "
            f"found {', '.join(checked.files) or 'nothing'}"
        )
    return checked


def read(
    source: dict[str, Any], split: Literal["test"], root: Path
) -> Iterator[Example | Rejected]:
    """Yield the example of every question, in order, or the reason why it is none.

    ValueError if a file is missing, truncated or not the publisher's.
    """
    checked = check(source)
    form, path = KINDS[checked.kind](checked, root), root / files(source)["test"]
    numbered = enumerate(form.records(path), start=1)
    asked = ((number, record) for number, record in numbered if not _elsewhere(form, record))
    for number, record in islice(asked, checked.first):
        try:
            yield form.example(mapping(record))
        except Bad as why:
            yield Rejected(str(path), number, str(why))


def survey(source: dict[str, Any], root: Path) -> Iterator[Finding]:
    """Yield what is there of the files and pictures of a task, and what is missing or broken."""
    checked, paths = check(source), files(source)
    form = KINDS[checked.kind](checked, root)
    for role, path in paths.items():
        if role != "test":
            there = (root / path).is_file()
            yield Finding(role, "there" if there else "missing", str(root / path))
    yield from look(
        "test", root / paths["test"], checked.expected, form.picture, form.pictures,
        lambda path: (r for r in form.records(path) if not _elsewhere(form, r)),
    )  # fmt: skip


def _elsewhere(form: Choices, record: Any) -> bool:
    return isinstance(record, dict) and form.elsewhere(record)


def _size(image: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(image)) as picture:
            return picture.size
    except Exception as error:  # damaged bytes make Pillow raise almost anything
        raise Bad(f"the picture does not decode: {type(error).__name__}") from None
