"""The reader of question and caption sets in their publishers' own files.

    vqa        VQAv2 and OK-VQA: a file of questions and one of annotations, pictures of COCO 2014
    vizwiz     VizWiz-VQA: Annotations/{train,val}.json
    textvqa    TextVQA 0.5.1, with the tokens of its Rosetta files if the question's template asks
    aokvqa     A-OKVQA v1p0, multiple choice; COCO 2017 has the pictures of COCO 2014, in two parts
    gqa        GQA 1.2, the balanced questions
    ocrvqa     OCR-VQA: dataset.json, whose splits are 1 (train), 2 (validation) and 3 (test)
    textcaps   TextCaps 0.1
    flickr30k  Flickr30k in Karpathy's dataset_flickr30k.json; the publisher's has no splits

An example is one question, or one caption to be learnt; a test example of a caption set is a
picture with all its captions. Where ten people answered, all ten answers are references and the
most frequent one is learnt (of several, the first): which one He et al. took is not known.
"""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from palimpsest.data.example import Example, Rejected, Turn
from palimpsest.data.fields import listing, mapping, spoken, string
from palimpsest.data.json_array import elements, members
from palimpsest.data.picture_files import Bad, Pictures
from palimpsest.data.readers import typed
from palimpsest.data.survey import Finding, look

ANSWERS = 10  # people who answered a question
FIELD = re.compile(r"\{(question|options|tokens)\}")

Split = Literal["train", "test"]


class Source(BaseModel):
    """A task's `source`; all paths are below `results/downloads/`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    splits: dict[Split, str]  # what the publisher calls the split that stands for ours
    files: dict[Split, dict[str, str]]  # role (of a kind's ROLES) -> file
    pictures: dict[str, str]  # folder of a picture's name -> folder that stands for it
    question: str = "{question}"  # with {question}, {options} or {tokens}; for captions, with none
    expected: dict[Split, int | str]  # records; "about 12000" if not certain


class Format(ABC):
    """Records of one split in a publisher's format: which there are, and what is in one."""

    ROLES: tuple[str, ...] = ("questions",)  # the first file has the records
    FIELDS = frozenset({"question"})  # of the question's template
    SPLITS: tuple[str, ...] = ()  # of a file that holds them all

    def __init__(self, source: Source, split: Split, root: Path) -> None:
        self.source, self.split, self.official = source, split, source.splits[split]
        self.files = {role: root / path for role, path in source.files[split].items()}
        self.pictures = Pictures(source.pictures, root)

    @classmethod
    def roles(cls, source: Source) -> tuple[str, ...]:
        """Return the files that a source has to name for each split."""
        return cls.ROLES

    def load(self) -> None:  # noqa: B027
        """Read what other files than that of the records say; ValueError if one is damaged."""

    def records(self, path: Path) -> Iterator[Any]:
        """Yield the records of a file, those of other splits too."""
        return elements(path)

    def elsewhere(self, record: Any) -> bool:
        """Return whether a record is of another split."""
        said = record.get("split") if isinstance(record, dict) else None
        return str(said) in self.SPLITS and str(said) != self.official

    @abstractmethod
    def picture(self, record: Any) -> str:
        """Return the name of a record's picture; Bad if there is no telling."""

    @abstractmethod
    def examples(self, record: dict) -> Iterator[Example]:
        """Yield the examples of a record; Bad if it is none."""

    def example(self, record: dict, id: str, answer: str, **more: Any) -> Example:
        """Return the example of a question and an answer to be learnt."""
        image, size = self.pictures.read(self.picture(record), "")
        found = {field: self.fill(field, record) for field in FIELD.findall(self.source.question)}
        question = FIELD.sub(lambda field: found[field[1]], self.source.question)
        return Example(id, image, (Turn(question, answer),), image_size=size, **more)

    def fill(self, field: str, record: dict) -> str:
        """Return what stands for a field of the question's template."""
        return string(record, field)

    def of_split(self, record: dict, key: str) -> None:
        """Refuse a record that says that it is of another split."""
        if (said := str(record.get(key))) != self.official:
            raise Bad(f"{key!r} is {said!r}, not {self.official!r}")


class Vqa(Format):
    """VQAv2 and OK-VQA: ten answers to a question, in a file of their own."""

    ROLES = ("questions", "annotations")

    def load(self) -> None:
        self.answers: dict[str, tuple[str, ...] | Bad] = {}
        for annotation in elements(self.files["annotations"], "annotations"):
            if isinstance(annotation, dict):
                id = str(annotation.get("question_id"))
                try:
                    self.answers[id] = _ten(annotation)
                except Bad as why:
                    self.answers[id] = why

    def records(self, path: Path) -> Iterator[Any]:
        return elements(path, "questions")

    def picture(self, record: Any) -> str:
        return _coco(record, self.official)

    def examples(self, record: dict) -> Iterator[Example]:
        id = string(record, "question_id")
        match self.answers.get(id):
            case None:
                raise Bad(f"question {id!r} has no annotation")
            case Bad() as why:
                raise Bad(f"annotation of question {id!r}: {why}")
            case answers:
                yield self.example(record, id, _most(answers), references=answers)


class VizWiz(Format):
    """One question about each photograph, with ten answers."""

    def picture(self, record: Any) -> str:
        return f"{self.official}/{string(mapping(record), 'image')}"

    def examples(self, record: dict) -> Iterator[Example]:
        image = string(record, "image")
        if not image.startswith(f"VizWiz_{self.official}_"):
            raise Bad(f"picture {image!r} is not of the split {self.official!r}")
        answers = _ten(record)
        yield self.example(record, Path(image).stem, _most(answers), references=answers)


class TextVqa(Format):
    """Ten answers in the record; `{tokens}` are the words that Rosetta read in the picture."""

    FIELDS = frozenset({"question", "tokens"})

    @classmethod
    def roles(cls, source: Source) -> tuple[str, ...]:
        return ("questions", "ocr") if "{tokens}" in source.question else ("questions",)

    def load(self) -> None:
        self.tokens: dict[str, str] = {}
        if "ocr" in self.files:
            for record in elements(self.files["ocr"], "data"):
                if isinstance(record, dict) and isinstance(read := record.get("ocr_tokens"), list):
                    self.tokens[str(record.get("image_id"))] = ", ".join(map(str, read))

    def records(self, path: Path) -> Iterator[Any]:
        return elements(path, "data")

    def picture(self, record: Any) -> str:
        return f"train_images/{string(mapping(record), 'image_id')}.jpg"

    def examples(self, record: dict) -> Iterator[Example]:
        self.of_split(record, "set_name")
        answers = _ten(record)
        id = string(record, "question_id")
        yield self.example(record, id, _most(answers), references=answers)

    def fill(self, field: str, record: dict) -> str:
        if field != "tokens":
            return super().fill(field, record)
        image = string(record, "image_id")
        if image not in self.tokens:
            raise Bad(f"there are no OCR tokens of picture {image!r}")
        return self.tokens[image]


class AOkVqa(Format):
    """Four options, of which one is right; the answer is its letter."""

    FIELDS = frozenset({"question", "options"})

    def picture(self, record: Any) -> str:
        names = [_coco(record, part) for part in ("train2014", "val2014")]
        try:
            self.pictures.path(names[0])
        except Bad:
            return names[1]
        return names[0]

    def examples(self, record: dict) -> Iterator[Example]:
        self.of_split(record, "split")
        choices, right = _choices(record), record.get("correct_choice_idx")
        if type(right) is not int or not 0 <= right < len(choices):
            raise Bad(f"'correct_choice_idx' is {right!r}, no place among {len(choices)} choices")
        letter = ascii_uppercase[right]
        id = string(record, "question_id")
        yield self.example(record, id, letter, references=(letter,), choices=choices)

    def fill(self, field: str, record: dict) -> str:
        if field != "options":
            return super().fill(field, record)
        named = zip(ascii_uppercase, _choices(record), strict=False)
        return " ".join(f"({letter}) {choice}" for letter, choice in named)


class Gqa(Format):
    """An object whose names are the questions' ids."""

    def records(self, path: Path) -> Iterator[Any]:
        for id, record in members(path):
            yield {**record, "id": id} if isinstance(record, dict) else record

    def picture(self, record: Any) -> str:
        return f"images/{string(mapping(record), 'imageId')}.jpg"

    def examples(self, record: dict) -> Iterator[Example]:
        answer = string(record, "answer")
        yield self.example(record, string(record, "id"), answer, references=(answer,))


class OcrVqa(Format):
    """An object of books; each has several questions, which are taken as records."""

    SPLITS = ("1", "2", "3")

    def records(self, path: Path) -> Iterator[Any]:
        for key, book in members(path):
            asked = book.get("questions") if isinstance(book, dict) else None
            answers = book.get("answers") if isinstance(book, dict) else None
            if not isinstance(asked, list) or not isinstance(answers, list):
                yield book
            elif len(asked) != len(answers):
                yield {"split": book.get("split"), "book": key, "questions": asked}
            else:
                for number, pair in enumerate(zip(asked, answers, strict=True)):
                    question = dict(zip(("question", "answer"), pair, strict=True))
                    yield {"split": book.get("split"), "book": key, "number": number, **question}

    def picture(self, record: Any) -> str:
        return f"images/{string(mapping(record), 'book')}.jpg"

    def examples(self, record: dict) -> Iterator[Example]:
        self.of_split(record, "split")
        if "number" not in record:
            raise Bad("the book has not one answer for each question")
        answer = string(record, "answer")
        id = f"{string(record, 'book')}_{record['number']}"
        yield self.example(record, id, answer, references=(answer,))


class TextCaps(Format):
    """A record for each caption, which holds all captions of its picture."""

    ROLES = ("captions",)
    FIELDS = frozenset()

    def load(self) -> None:
        self.seen: set[str] = set()

    def records(self, path: Path) -> Iterator[Any]:
        return elements(path, "data")

    def picture(self, record: Any) -> str:
        return f"train_images/{string(mapping(record), 'image_id')}.jpg"

    def examples(self, record: dict) -> Iterator[Example]:
        self.of_split(record, "set_name")
        image, caption = string(record, "image_id"), string(record, "caption_str")
        told = tuple(spoken(said, "reference_strs") for said in listing(record, "reference_strs"))
        if not told:
            raise Bad("there is no reference")
        if self.split == "train":
            id = f"{image}_{string(record, 'caption_id')}"
            yield self.example(record, id, caption, references=told)
        elif image not in self.seen:
            yield self.example(record, image, caption, references=told)
            self.seen.add(image)


class Flickr30k(Format):
    """A record for each picture, with its five captions."""

    ROLES = ("captions",)
    FIELDS = frozenset()
    SPLITS = ("train", "val", "test")

    def records(self, path: Path) -> Iterator[Any]:
        return elements(path, "images")

    def picture(self, record: Any) -> str:
        return f"flickr30k-images/{string(mapping(record), 'filename')}"

    def examples(self, record: dict) -> Iterator[Example]:
        self.of_split(record, "split")
        captions = tuple(string(mapping(said), "raw") for said in listing(record, "sentences"))
        if not captions:
            raise Bad("there is no caption")
        stem = Path(string(record, "filename")).stem
        if self.split == "test":
            yield self.example(record, stem, captions[0], references=captions)
            return
        for number, caption in enumerate(captions):
            yield self.example(record, f"{stem}_{number}", caption, references=captions)


KINDS: dict[str, type[Format]] = {
    "vqa": Vqa,
    "vizwiz": VizWiz,
    "textvqa": TextVqa,
    "aokvqa": AOkVqa,
    "gqa": Gqa,
    "ocrvqa": OcrVqa,
    "textcaps": TextCaps,
    "flickr30k": Flickr30k,
}


def splits(source: dict[str, Any], root: Path) -> tuple[str, ...]:
    """Return the names of the splits; ValueError says which key of the source is wrong."""
    return tuple(check(source).splits)


def files(source: dict[str, Any]) -> dict[str, str]:
    """Return the files besides pictures, below the downloads: by split, and by split and role."""
    checked = check(source)
    records, *others = KINDS[checked.kind].roles(checked)
    named = {split: paths[records] for split, paths in checked.files.items()}
    for split, paths in checked.files.items():
        named |= {f"{split} {role}": paths[role] for role in others}
    return named


def check(source: dict[str, Any]) -> Source:
    """Return a task's source with its types; ValueError names what is wrong."""
    checked = typed(Source, source, "official")
    if checked.kind not in KINDS:
        raise ValueError(
            f"reader 'official': source.kind is {checked.kind!r}; there are {', '.join(KINDS)}"
        )
    form = KINDS[checked.kind]
    if alien := set(FIELD.findall(checked.question)) - form.FIELDS:
        raise ValueError(
            f"reader 'official': source.question of kind {checked.kind!r} has {{{alien.pop()}}}, "
            f"but knows {', '.join(sorted(form.FIELDS)) or 'no field: write the instruction'}"
        )
    for split in ("train", "test"):
        if split not in checked.splits:
            raise ValueError(f"reader 'official': source.splits has no {split!r}")
        if set(found := checked.files.get(split, {})) != set(needed := form.roles(checked)):
            raise ValueError(
                f"reader 'official': source.files.{split} of kind {checked.kind!r} names "
                f"{', '.join(needed)}; found {', '.join(found) or 'nothing'}"
            )
    return checked


def read(source: dict[str, Any], split: Split, root: Path) -> Iterator[Example | Rejected]:
    """Yield the examples of every record of a split, in order, or the reason why it has none.

    ValueError if a file is missing, truncated or no JSON.
    """
    path, form = root / files(source)[split], _format(source, split, root)
    form.load()
    for number, record in enumerate(form.records(path), start=1):
        if form.elsewhere(record):
            continue
        try:
            found = list(form.examples(mapping(record)))
        except Bad as why:
            yield Rejected(str(path), number, str(why))
        else:
            yield from found


def survey(source: dict[str, Any], root: Path) -> Iterator[Finding]:
    """Yield what is there of the files and pictures of a task, and what is missing or broken."""
    checked, paths = check(source), files(source)
    for split, expected in checked.expected.items():
        form = _format(source, split, root)
        yield from look(
            split, root / paths[split], expected, form.picture, form.pictures,
            lambda path, form=form: (r for r in form.records(path) if not form.elsewhere(r)),
        )  # fmt: skip
    for folder in checked.pictures.values():
        if not (root / folder).is_dir():
            yield Finding("pictures", "missing", str(root / folder))
    for name, path in paths.items():
        if name not in checked.expected:
            there = (root / path).is_file()
            yield Finding(name, "there" if there else "missing", str(root / path))


def _format(source: dict[str, Any], split: Split, root: Path) -> Format:
    checked = check(source)
    return KINDS[checked.kind](checked, split, root)


def _coco(record: Any, part: str) -> str:
    """Return the name of a COCO picture of 2014."""
    number = mapping(record).get("image_id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise Bad(f"'image_id' is {number!r:.80}, no number")
    return f"{part}/COCO_{part}_{number:012}.jpg"


def _ten(record: dict) -> tuple[str, ...]:
    """Return the ten answers of a record: texts, or objects that have one."""
    found = listing(record, "answers")
    if len(found) != ANSWERS:
        raise Bad(f"there are {len(found)} answers, not {ANSWERS}")
    said = (answer.get("answer") if isinstance(answer, dict) else answer for answer in found)
    return tuple(sys.intern(spoken(answer, "answer")) for answer in said)


def _most(answers: tuple[str, ...]) -> str:
    return Counter(answers).most_common(1)[0][0]


def _choices(record: dict) -> tuple[str, ...]:
    return tuple(spoken(choice, "choices") for choice in listing(record, "choices"))
