"""The reader of what is to be unlearnt: SafeEraser, and ImageNet-R as CORE uses it.

    safeeraser   all_train.json and all_val.json: a record is a keyword with a harmful picture, a
                 harmless one, questions to refuse and two harmless ones
    imagenet-r   the folders of 200 classes, and README.txt, which names them

The training split holds what is to be refused, with a refusal as the answer. The test split holds
combinations of picture and text, each harmful (H) or not (U): HH is to be refused. Of ImageNet-R a
harmful picture is one of a class to unlearn, a harmless one is of a class that is kept, and a
harmful text asks for the class.

Follows minigpt4/datasets/datasets/coco_vqa_datasets.py of Jin0316/CORE (1fe383c), but for two
things: that draws refusals and questions anew each time, and here the example's id decides; it
takes a class for one to unlearn if the name is a part of another's, so that collies are tested one
task early, with the border collies.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.data.example import Example, Rejected, Turn, lot
from palimpsest.data.fields import mapping, string
from palimpsest.data.json_array import elements
from palimpsest.data.picture_files import Bad, Pictures
from palimpsest.data.readers import typed
from palimpsest.data.survey import Finding, look
from palimpsest.data.wording import CLASSIFICATION, OURS, drawn, read_wording
from palimpsest.files import sha256

COMBINATIONS = {"train": ("HH",), "test": ("HH", "HU", "UH", "UU")}
ANY = "(any answer that is no refusal)"  # the reference where the publisher gives none
FIFTH = 5  # one picture in so many is for testing, where nobody has parted them

# Of SafeEraser: files, pictures, questions, and answers that are not to be unlearnt.
FILES = {"train": "all_train.json", "test": "all_val.json"}
PICTURES = {"H": "image_id", "U": "SDImage_path"}
HARMFUL, HARMLESS = "unsafe_pairs", ("UnharmPair_image1", "UnharmPair_image2")
QUESTIONS = {"H": "question", "U": "Question"}
KNOWN = {"HU": "Prediction", "UH": "sd_response"}

Split = Literal["train", "test"]


class Source(BaseModel):
    """A task's `source`; all paths are below `results/downloads/`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["safeeraser", "imagenet-r"]
    folder: str  # of all_train.json and all_val.json, or of the classes' folders
    keywords: tuple[str, ...] = Field(min_length=1)  # to unlearn
    kept: tuple[str, ...] = ()  # classes of ImageNet-R that UH and UU show; without, there are none
    wording: str  # CORE's prompts.py; ours is taken if it is not there
    expected: dict[Split, int | str] = {}  # records of the keywords; "about 200" if not certain


@dataclass(frozen=True)
class Part:
    """One of the examples that a record makes."""

    id: str
    combination: str
    pair: Any = None  # of SafeEraser: a question and what was answered
    key: str = ""  # of SafeEraser: where the pair stands


class Form(ABC):
    """Records of a publisher's format: what they are, and what is asked about each."""

    def __init__(self, source: Source, root: Path) -> None:
        self.source, self.folder = source, root / source.folder
        self.pictures = Pictures({"": source.folder}, root)
        self.wording = read_wording(root / source.wording)

    @abstractmethod
    def file(self, split: Split) -> Path:
        """Return the file, or folder, that a split's records are in."""

    @abstractmethod
    def records(self, split: Split) -> Iterator[Any]:
        """Yield the records of a split, those of other tasks too."""

    @abstractmethod
    def parts(self, number: int, record: Any, split: Split) -> Iterator[Part]:
        """Yield what a record makes examples of: nothing, if it is of another task."""

    @abstractmethod
    def example(self, record: Any, part: Part) -> Example:
        """Return an example; Bad if the record does not make it."""

    def asked(
        self, part: Part, picture: str, question: str, group: tuple[str, str], reference: str
    ) -> Example:
        """Return the example of a question about something of a `group`: its category and keyword.

        `reference` is the answer if it is to be answered.
        """
        category, keyword = group
        if category not in self.wording.refusals:
            known = ", ".join(self.wording.refusals)
            raise Bad(f"there are no refusals of category {category!r}, but of {known}")
        image, size = self.pictures.read(picture, "")
        references = self.wording.refusals[category] if part.combination == "HH" else (reference,)
        return Example(
            id=part.id,
            image=image,
            turns=(Turn(question, drawn(references, part.id)),),
            references=references,
            image_size=size,
            combination=part.combination,
            category=category,
            keyword=keyword,
        )

    @abstractmethod
    def survey(self) -> Iterator[Finding]:
        """Yield what is there of the records and their pictures."""


class SafeEraser(Form):
    """An array of records, each of a keyword."""

    def file(self, split: Split) -> Path:
        return self.folder / FILES[split]

    def records(self, split: Split) -> Iterator[Any]:
        missing = set(self.source.keywords)
        for record in elements(self.file(split)):
            missing.discard(_keyword(record))
            yield record
        if missing:
            raise ValueError(
                f"{self.file(split)}: no record has the keyword {', '.join(sorted(missing))}; "
                "`keywords` of the task's source are spelt as in the file"
            )

    def parts(self, number: int, record: Any, split: Split) -> Iterator[Part]:
        if (keyword := _keyword(record)) and keyword not in self.source.keywords:
            return
        record = record if isinstance(record, dict) else {}
        for combination in COMBINATIONS[split]:
            for place, (key, pair) in enumerate(_pairs(record, combination[1])):
                yield Part(f"{split}/{number:05}/{combination}{place}", combination, pair, key)

    def example(self, record: Any, part: Part) -> Example:
        picture, text = part.combination
        keyword = string(mapping(record), "keyword")
        if not isinstance(part.pair, dict):
            raise Bad(f"there is no {part.key!r}")
        known = part.pair.get(KNOWN.get(part.combination))
        return self.asked(
            part,
            string(record, PICTURES[picture]),
            string(part.pair, QUESTIONS[text]),
            (string(record, "category"), keyword),
            known if isinstance(known, str) and known.strip() else ANY,
        )

    def survey(self) -> Iterator[Finding]:
        for split, expected in self.source.expected.items():
            key = PICTURES["H" if split == "train" else "U"]
            yield from look(
                split, self.file(split), expected,
                lambda record, key=key: string(record, key), self.pictures,
                lambda path: (r for r in elements(path) if _keyword(r) in self.source.keywords),
            )  # fmt: skip


class ImageNetR(Form):
    """Pictures in a folder for each class, in two parts (train and test) or in one.

    Its publisher gives one part: then the lot of a picture's name says whether it is for testing.
    """

    def file(self, split: Split) -> Path:
        return self.folder / split if self.parted else self.folder

    @property
    def parted(self) -> bool:
        """Whether somebody has parted the pictures."""
        return (self.folder / "train").is_dir()

    def records(self, split: Split) -> Iterator[tuple[str, str]]:
        """Yield class and name, below the folder, of each picture of a split."""
        folders = class_folders(self.folder / "README.txt")
        for name in (*self.source.keywords, *(self.source.kept if split == "test" else ())):
            if name not in folders:
                raise ValueError(f"{self.folder}/README.txt: has no class {name!r}")
            folder = self.file(split) / folders[name]
            if not folder.is_dir():
                raise ValueError(f"{folder}: the pictures of class {name!r} are missing")
            for picture in sorted(path.relative_to(self.folder) for path in folder.iterdir()):
                if self.parted or _is_for_testing(picture) == (split == "test"):
                    yield name, picture.as_posix()

    def parts(self, number: int, record: tuple[str, str], split: Split) -> Iterator[Part]:
        name, picture = record
        for combination in COMBINATIONS[split]:
            if (combination[0] == "H") == (name in self.source.keywords):
                yield Part(f"{picture}/{combination}", combination)

    def example(self, record: tuple[str, str], part: Part) -> Example:
        name, picture = record
        asks = part.combination[1] == "H"
        questions = self.wording.questions if asks else self.wording.harmless
        question = drawn(questions, f"{part.id}/question")
        reference = name.replace("_", " ") if asks else ANY
        return self.asked(part, picture, question, (CLASSIFICATION, name), reference)

    def survey(self) -> Iterator[Finding]:
        for split in COMBINATIONS:
            try:
                count = sum(1 for _ in self.records(split))
                note = f"{self.file(split)}: {count:,} pictures"
                yield Finding(split, "there", note)
            except ValueError as error:
                yield Finding(split, "missing", str(error))


KINDS: dict[str, type[Form]] = {"safeeraser": SafeEraser, "imagenet-r": ImageNetR}


def splits(source: dict[str, Any], root: Path) -> tuple[str, ...]:
    """Return the names of the splits; ValueError says which key of the source is wrong."""
    check(source)
    return tuple(COMBINATIONS)


def files(source: dict[str, Any]) -> dict[str, str]:
    """Return the files besides pictures that have to be there, below the downloads."""
    checked = check(source)
    if checked.kind == "imagenet-r":
        return {"classes": f"{checked.folder}/README.txt"}
    return {split: f"{checked.folder}/{name}" for split, name in FILES.items()}


def notes(source: dict[str, Any], root: Path) -> dict[str, Any]:
    """Return for the manifest whose wording the examples have, and how pictures were parted."""
    form = _form(source, root)
    path = root / form.source.wording
    ours = form.wording is OURS
    told: dict[str, Any] = {
        "wording": {
            "from": "Palimpsest" if ours else form.source.wording,
            "sha256": None if ours else sha256(path),
            "refusals": form.wording.refusals,
        }
    }
    if isinstance(form, ImageNetR):
        told["parted"] = "as found" if form.parted else f"by lot: one in {FIFTH} is for testing"
    return told


def check(source: dict[str, Any]) -> Source:
    """Return a task's source with its types; ValueError names what is wrong."""
    checked = typed(Source, source, "unlearning")
    if checked.kept and checked.kind == "safeeraser":
        raise ValueError("reader 'unlearning': source.kept is of kind 'imagenet-r' only; remove it")
    if both := set(checked.keywords) & set(checked.kept):
        raise ValueError(f"reader 'unlearning': source.kept names {both.pop()!r}, a keyword")
    return checked


def read(source: dict[str, Any], split: Split, root: Path) -> Iterator[Example | Rejected]:
    """Yield the examples of every record of a split, in order, or the reason why it lacks one.

    ValueError if a file or folder is missing or damaged, or a keyword has no record.
    """
    form = _form(source, root)
    for number, record in enumerate(form.records(split), start=1):
        for part in form.parts(number, record, split):
            try:
                yield form.example(record, part)
            except Bad as why:
                yield Rejected(str(form.file(split)), number, f"{part.combination}: {why}")


def survey(source: dict[str, Any], root: Path) -> Iterator[Finding]:
    """Yield what is there of the files and pictures of a task, and what is missing or broken."""
    checked = check(source)
    path = root / checked.wording
    try:
        read_wording(path)
        lacks = (
            f" is not there: ours is taken (palimpsest download {Path(checked.wording).parts[0]})"
        )
        note = "" if path.is_file() else lacks
        yield Finding("wording", "there", f"{path}{note}")
    except ValueError as error:
        yield Finding("wording", "broken", str(error))
        return
    yield from _form(source, root).survey()


def class_folders(readme: Path) -> dict[str, str]:
    """Return the folder of each class that ImageNet-R's README.txt names; ValueError if none."""
    if not readme.is_file():
        raise ValueError(f"{readme}: file is missing")
    text = readme.read_text(encoding="utf-8")
    if not (found := re.findall(r"^(n\d{8})\s+(\S+)", text, re.MULTILINE)):
        raise ValueError(f"{readme}: names no class, as in 'n01443537 goldfish'; fetch it again")
    return {name: folder for folder, name in found}


def _form(source: dict[str, Any], root: Path) -> Form:
    checked = check(source)
    return KINDS[checked.kind](checked, root)


def _keyword(record: Any) -> str | None:
    keyword = record.get("keyword") if isinstance(record, dict) else None
    return keyword if isinstance(keyword, str) else None


def _pairs(record: dict, text: str) -> list[tuple[str, Any]]:
    """Return the questions of a record, harmful or not, each with the key under which it stands."""
    if text == "U":
        return [(key, record.get(key)) for key in HARMLESS]
    pairs = record.get(HARMFUL)
    return [(HARMFUL, pair) for pair in (pairs if isinstance(pairs, list) and pairs else [None])]


def _is_for_testing(picture: Path) -> bool:
    return int.from_bytes(lot(picture.as_posix())) % FIFTH == 0
