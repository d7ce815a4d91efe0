"""The reader of CoIN's released instruction files (Chen et al., arXiv 2403.08350), all eight tasks.

The files lie on the hub at Zacks-Chen/CoIN; `image` fields are relative to the root `cl_dataset`
of the released code. Training records are in LLaVA's schema, or in Qwen's with the picture's path
inside the text; test records are flat. Official files of ScienceQA, TextVQA and GQA give what the
released scorers take from them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from palimpsest.data.example import Example, Rejected, Turn
from palimpsest.data.fields import listing, mapping, optional, string
from palimpsest.data.json_array import elements
from palimpsest.data.picture_files import Bad, Pictures
from palimpsest.data.readers import typed
from palimpsest.data.survey import Finding, look
from palimpsest.files import read_json

LETTERS = "ABCDEFGH"
ANSWERS = 10  # human answers of a TextVQA question
TOLERANCE = 0.01  # of the picture's longer side, by which a rounded box may stand out
SIDES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
IN_TEXT = re.compile(r"(?:Picture \d+: ?)?<img>(.*?)</img>\n?")
NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
BOX = re.compile(rf"\[?{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]?")

Box = tuple[float, float, float, float]


class Source(BaseModel):
    """A task's `source`; all paths are below `results/downloads/`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["words", "scienceqa", "textvqa", "gqa", "grounding"]
    instructions: str  # the folder of train.json and the test file
    test: str = "test.json"  # val.json for TextVQA, VizWiz and VQAv2, as in the released scripts
    official: dict[str, str] = {}  # role (of OFFICIAL) -> file
    pictures: dict[str, str]  # prefix of an `image` field -> folder that stands for it
    expected: dict[Literal["train", "test"], int | str]  # records; "about 12000" if not certain


# Roles of the official files of a kind.
OFFICIAL = {
    "scienceqa": ("problems", "splits"),
    "textvqa": ("answers",),
    "gqa": ("questions",),
}


def splits(source: dict[str, Any], root: Path) -> tuple[str, ...]:
    """Return the names of the splits; ValueError says which key of the source is wrong."""
    check(source)
    return ("train", "test")


def files(source: dict[str, Any]) -> dict[str, str]:
    """Return the files that are read besides pictures, by split or role, below the downloads."""
    checked = check(source)
    return {
        "train": f"{checked.instructions}/train.json",
        "test": f"{checked.instructions}/{checked.test}",
        **checked.official,
    }


def check(source: dict[str, Any]) -> Source:
    """Return a task's source with its types; ValueError names what is wrong."""
    checked = typed(Source, source, "coin")
    if set(checked.official) != set(needed := OFFICIAL.get(checked.kind, ())):
        raise ValueError(
            f"reader 'coin': source.official of kind {checked.kind!r} names "
            f"{', '.join(needed) or 'nothing'}; found {', '.join(checked.official) or 'nothing'}"
        )
    return checked


def read(source: dict[str, Any], split: str, root: Path) -> Iterator[Example | Rejected]:
    """Yield an example, or the reason why it is none, for every record of a split, in order.

    ValueError if the file, or an official one, is missing, truncated or no JSON.
    """
    checked = check(source)
    path = root / files(source)[split]
    if split == "train":
        make = Training(checked, root).example
    else:
        make = KINDS[checked.kind](checked, root).example
    for number, record in enumerate(elements(path), start=1):
        try:
            yield make(record)
        except Bad as why:
            yield Rejected(str(path), number, str(why))


def survey(source: dict[str, Any], root: Path) -> Iterator[Finding]:
    """Yield what is there of the files and pictures of a task, and what is missing or broken."""
    checked, paths = check(source), files(source)
    pictures = Pictures(checked.pictures, root)
    for split, expected in checked.expected.items():
        yield from look(split, root / paths[split], expected, picture_of, pictures)
    for folder in checked.pictures.values():
        if not (root / folder).is_dir():
            yield Finding("pictures", "missing", str(root / folder))
    for role, path in checked.official.items():
        try:
            _official(role, root / path)
            yield Finding(role, "there", str(root / path))
        except ValueError as error:
            yield Finding(role, "broken" if (root / path).exists() else "missing", str(error))


def picture_of(record: Any) -> str | None:
    """Return the name of a record's picture, as released; Bad if there is no telling."""
    record = mapping(record)
    if name := optional(record, "image"):
        return name
    said = record.get("conversations")
    text = record.get("text") or (said and isinstance(said, list) and _said(said[0])[1])
    found = IN_TEXT.search(text) if isinstance(text, str) else None
    return found and found[1]


class Training:
    """Training records: a conversation, in LLaVA's schema or in Qwen's."""

    def __init__(self, source: Source, root: Path) -> None:
        self.source, self.pictures = source, Pictures(source.pictures, root)

    def example(self, record: Any) -> Example:
        """Return the example of a record; Bad if it is none."""
        record = mapping(record)
        if "conversations" not in record:
            known = "text" in record or "answer" in record
            raise Bad("a test record in the training file" if known else "there is no conversation")
        said = [_said(item) for item in listing(record, "conversations")]
        if not said or [side for side, _ in said] != ["human", "gpt"] * (len(said) // 2):
            raise Bad("questions and answers do not alternate, beginning with a question")
        texts = [text for _, text in said]
        image, size = self.pictures.read(picture_of(record), texts[0])
        texts[0] = _question(texts[0])
        turns = tuple(map(Turn, texts[::2], texts[1::2]))
        if self.source.kind == "grounding":
            for turn in turns:
                _numbers(turn.answer)
        if not texts[0].strip():
            raise Bad("the question is empty")
        return Example(
            id=_id(record, "id", "question_id"),
            image=image,
            turns=turns,
            references=(turns[-1].answer,),
            image_size=size,
        )


class Words:
    """Test records with one accepted answer, for which nothing else is looked up."""

    def __init__(self, source: Source, root: Path) -> None:
        self.pictures = Pictures(source.pictures, root)
        paths = {role: root / path for role, path in source.official.items()}
        self.official = {role: _official(role, path) for role, path in paths.items()}

    def example(self, record: Any) -> Example:
        """Return the example of a record; Bad if it is none."""
        record = mapping(record)
        if "conversations" in record:
            raise Bad("a training record in the test file")
        identity, text = _id(record, "question_id", "id"), string(record, "text")
        image, size = self.pictures.read(picture_of(record), text)
        question = _question(text)
        if not question.strip():
            raise Bad("the question is empty")
        answer = self.answer(record)
        return Example(
            id=identity,
            image=image,
            turns=(Turn(question, answer),),
            image_size=size,
            **self.accepted(identity, record, answer, size),
        )

    def answer(self, record: dict) -> str:
        """Return the answer that a record gives."""
        return string(record, "answer")

    def accepted(self, identity: str, record: dict, answer: str, size: Any) -> dict[str, Any]:
        """Return what decides whether an answer is right, as fields of the example.

        `size` is the picture's width and height in pixels, or None.
        """
        return {"references": (answer,)}


class ScienceQA(Words):
    """Choice questions of ScienceQA's official test split, with the options' texts."""

    def accepted(self, identity: str, record: dict, answer: str, size: Any) -> dict[str, Any]:
        if identity not in self.official["splits"]:
            raise Bad(f"{identity!r} is no id of ScienceQA's test split")
        problem = self.official["problems"].get(identity)
        if problem is None:
            raise Bad(f"{identity!r} is no id of ScienceQA's problems")
        choices, letter = problem
        if answer.strip() != letter:
            raise Bad(f"the answer is {answer!r}, ScienceQA's is {letter!r}")
        return {"references": (letter,), "choices": choices}


class TextVQA(Words):
    """Questions of TextVQA's validation split, each with its ten human answers."""

    def accepted(self, identity: str, record: dict, answer: str, size: Any) -> dict[str, Any]:
        if identity not in self.official["answers"]:
            raise Bad(f"{identity!r} is no question of TextVQA's validation file")
        return {"references": self.official["answers"][identity]}


class GQA(Words):
    """Questions of GQA's balanced testdev split, which has the answers that count."""

    def accepted(self, identity: str, record: dict, answer: str, size: Any) -> dict[str, Any]:
        if identity not in self.official["questions"]:
            raise Bad(f"{identity!r} is no question of GQA's testdev_balanced")
        return {"references": (self.official["questions"][identity],)}


class Grounding(Words):
    """Referring expressions; answers are relative to the picture padded to a square."""

    def answer(self, record: dict) -> str:
        value = record.get("answer_bbox")
        return json.dumps(value) if isinstance(value, list) else string(record, "answer_bbox")

    def accepted(self, identity: str, record: dict, answer: str, size: Any) -> dict[str, Any]:
        if size is None:
            raise Bad("there is no picture")
        if (said := record.get("size")) is not None and said != list(size):
            raise Bad(f"size is {said!r}, the picture has {size}")
        return {"references": (answer,), "box": pixels(_numbers(answer), size)}


KINDS: dict[str, Callable[[Source, Path], Words]] = {
    "words": Words,
    "scienceqa": ScienceQA,
    "textvqa": TextVQA,
    "gqa": GQA,
    "grounding": Grounding,
}


def pixels(box: Box, size: tuple[int, int]) -> Box:
    """Return in pixels of the picture a box that is relative to the picture padded to a square.

    The released rule adds (w - h) / 2 to y or (h - w) / 2 to x and divides by the longer side;
    this is its inverse.
    """
    width, height = size
    side = max(size)
    left, top = (side - width) / 2, (side - height) / 2
    x0, y0, x1, y1 = (side * value for value in box)
    return x0 - left, y0 - top, x1 - left, y1 - top


def _official(role: str, path: Path) -> Any:
    """Read of an official file what examples need of it."""
    content = read_json(path)
    try:
        match role:
            case "problems":
                return {key: _choices(problem) for key, problem in content.items()}
            case "splits":
                return set(map(str, content["test"]))
            case "answers":
                return {str(q["question_id"]): _ten(q["answers"]) for q in content["data"]}
            case "questions":
                return {key: str(q["answer"]) for key, q in content.items()}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not the publisher's file ({type(error).__name__}: {error}); fetch it again"
        ) from None


def _choices(problem: dict) -> tuple[tuple[str, ...], str]:
    """Return the options of a ScienceQA problem and the letter of the right one."""
    choices = tuple(map(str, problem["choices"]))
    return choices, LETTERS[: len(choices)][problem["answer"]]


def _ten(answers: list[str]) -> tuple[str, ...]:
    if len(answers) != ANSWERS:
        raise ValueError(f"a question has {len(answers)} answers, not {ANSWERS}")
    return tuple(map(str, answers))


def _numbers(answer: str) -> Box:
    """Return the four numbers of a box; Bad if they are others, or lie outside the square."""
    found = BOX.fullmatch(answer.strip())
    if not found:
        raise Bad(f"the box is not four numbers: {answer!r}")
    x0, y0, x1, y1 = box = tuple(map(float, found.groups()))
    if not all(math.isfinite(v) and -TOLERANCE <= v <= 1 + TOLERANCE for v in box):
        raise Bad(f"the box is not relative to the picture: {answer!r}")
    if not (x0 < x1 and y0 < y1):
        raise Bad(f"the box has no area: {answer!r}")
    return box


def _question(text: str) -> str:
    """Return a question without the picture's mark or path, which the model's chat puts there."""
    text = IN_TEXT.sub("", text)
    return text.replace("<image>", "").strip("\n") if "<image>" in text else text


def _said(item: Any) -> tuple[str | None, str]:
    item = mapping(item)
    side = item.get("from")
    return SIDES.get(side) if isinstance(side, str) else None, string(item, "value")


def _id(record: dict, *keys: str) -> str:
    return string(record, next((key for key in keys if key in record), keys[0]))
