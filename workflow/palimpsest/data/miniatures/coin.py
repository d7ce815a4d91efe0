"""CoIN in small: the released tree with made-up records and drawn pictures.

    Instructions_{Original,Diverse,10Type}/<Task>/{train,test,val}.json
    cl_dataset/                                the pictures, and the official files that are needed

Every kind of record is there: text-only and multi-turn ones, names with a leading `./`, doubled
extensions, ids that are numbers, and pictures that are wide, high and square. The training file of
each task ends with one record that is bad, each in another way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from palimpsest.data.pictures.drawing import COLOURS, SHAPES, letters, pick, sample, shape_mask

STYLES = ("Original", "Diverse", "10Type")
SIZES = ((96, 64), (64, 96), (80, 80))
TASKS = ("ScienceQA", "TextVQA", "ImageNet", "GQA", "VizWiz", "Grounding", "VQAv2", "OCRVQA")
WITH_VAL = {"TextVQA", "VizWiz", "VQAv2", "OCRVQA"}
BRIEFLY = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
WHERE = "Please provide the bounding box coordinate of the region this sentence describes: "
PARAPHRASES = (
    BRIEFLY,
    "Give your answer in the form of a single word or a concise phrase.",
    "Summarize your response in a single word or a brief phrase.",
)

Ask = Callable[[str], str]
Records = list[dict[str, Any]]
Box = tuple[int, int, int, int]


def generate(out: Path, seed: int = 0, records: int = 24) -> None:
    """Write the tree below `out`, with `records` good records a task and split."""
    for style in STYLES:
        for number, task in enumerate(TASKS):
            random = np.random.default_rng([seed, number])
            tree = Tree(out / "cl_dataset", random, records, style)
            train, test = WRITERS[task](tree)
            folder = out / f"Instructions_{style}" / task
            _write(folder / "train.json", train)
            _write(folder / "test.json", test)
            if task in WITH_VAL:
                _write(folder / "val.json", test)


@dataclass(frozen=True)
class Scene:
    """A coloured shape in a picture; `box` is x0, y0, x1, y1 in pixels."""

    colour: str
    shape: str
    size: tuple[int, int]
    box: Box

    @property
    def name(self) -> str:
        """What questions call it."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Tree:
    """Where pictures are drawn, how many records are wanted, and how questions are worded."""

    root: Path
    random: np.random.Generator
    records: int
    style: str

    def ask(self, question: str, instruction: str = BRIEFLY) -> str:
        """Return a question with the instruction of the style below it."""
        if self.style != "Original" and instruction == BRIEFLY:
            of_task = PARAPHRASES[1:] if self.style == "Diverse" else PARAPHRASES
            instruction = of_task[len(question) % len(of_task)]
        return f"{question}\n{instruction}"

    def scene(self, path: str, number: int, text: str = "") -> Scene:
        """Draw the picture number `number`, once for all styles, and return what it shows."""
        width, height = size = SIZES[number % len(SIZES)]
        side = int(self.random.integers(24, 44))
        x, y = (int(self.random.integers(0, length - side)) for length in size)
        scene = Scene(
            pick(self.random, list(COLOURS)), pick(self.random, SHAPES), size,
            (x, y, x + side, y + side),
        )  # fmt: skip
        if self.style != STYLES[0]:
            return scene
        picture = Image.new("RGB", (width, height), (40, 40, 48))
        picture.paste(COLOURS[scene.colour], (x, y), shape_mask(scene.shape, side))
        if text:
            ImageDraw.Draw(picture).text((4, 4), text, "white", ImageFont.load_default(14))
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(self.root / path, quality=90)
        return scene

    def official(self, path: str, content: Any) -> None:
        """Write an official file, in one line as publishers do."""
        _write(self.root / path, content, indent=None)


def _scienceqa(tree: Tree) -> tuple[Records, Records]:
    """Choice questions; every other one is about a picture."""
    problems, found = {}, {"train": [], "test": []}
    for number in range(2 * tree.records):
        split = "train" if number < tree.records else "test"
        pid = str(number + 1)
        options, image = sample(tree.random, SHAPES, 3 + number % 3), None
        right = int(tree.random.integers(len(options)))
        hint = "Every shape has a name." if number % 3 == 0 else ""
        word = options[right]
        question = f"Which word has {len(word)} letters and ends in {word[-2:]}?"
        if number % 2:
            image = f"ScienceQA/images/{split}/{pid}/image.png"
            shape = tree.scene(image, number).shape
            options = [shape, *(o for o in options if o != shape)][: max(2, len(options))]
            options = options[::-1] if number % 4 == 1 else options
            question, right = "Which shape is in the picture?", options.index(shape)
        problems[pid] = {
            "question": question, "choices": options, "answer": right, "hint": hint,
            "image": image and "image.png", "split": split,
        }  # fmt: skip
        lines = [f"Context: {hint}"] if hint else []
        lines += [question, *(f"{'ABCDE'[i]}. {option}" for i, option in enumerate(options))]
        text = tree.ask("\n".join(lines), LETTER)
        found[split].append((pid, image and f"./{image}", text, "ABCDE"[right]))
    splits = {split: [pid for pid, *_ in rows] for split, rows in found.items()}
    tree.official("ScienceQA/problems.json", problems)
    tree.official("ScienceQA/pid_splits.json", {**splits, "val": []})
    train = [_conversation(pid, image, (text, a)) for pid, image, text, a in found["train"]]
    test = [_question(pid, image, text, a, mark=True) for pid, image, text, a in found["test"]]
    return [*train, dict(train[0])], test  # an id that occurs twice


def _textvqa(tree: Tree) -> tuple[Records, Records]:
    train, test, official = [], [], []
    for number in range(2 * tree.records):
        word = letters(tree.random, 4).lower()
        image = f"TextVQA/train_images/{number:016x}.jpg"
        tree.scene(image, number, word.upper())
        text = tree.ask("what does the sign say?")
        if number < tree.records:
            train.append(_conversation(str(number), f"./{image}", (text, word)))
        else:
            identity = 34602 + number  # official ids are numbers
            test.append(_question(identity, f"./{image}", text, word))
            answers = [word] * 7 + [word.upper(), f"the {word}", "unanswerable"]
            official.append({"question_id": identity, "answers": answers})
    tree.official("TextVQA/TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": official})
    missing = "./TextVQA/train_images/ffffffffffffffff.jpg"
    return [*train, _conversation("missing", missing, (text, "stop"))], test


def _imagenet(tree: Tree) -> tuple[Records, Records]:
    train, test = [], []
    text = tree.ask("What is the object in the image?")
    for number in range(tree.records):
        image = f"ImageNet_withlabel/train/n{number % 4:08}/n{number % 4:08}_{number}.JPEG"
        label = tree.scene(image, number).shape.capitalize()
        train.append(_conversation(str(number), f"./{image}", (text, label)))
        name = f"ILSVRC2012_val_{number + 1:08}.JPEG"
        label = tree.scene(f"ImageNet_withlabel/val/{name}", number).shape.capitalize()
        test.append(_question(name, f"./ImageNet_withlabel/val/{name}", text, label))
    (tree.root / "ImageNet_withlabel/train/n00000000/damaged.JPEG").write_bytes(b"<html>404</html>")
    damaged = "./ImageNet_withlabel/train/n00000000/damaged.JPEG"
    return [*train, _conversation("damaged", damaged, (text, "Circle"))], test


def _gqa(tree: Tree) -> tuple[Records, Records]:
    """Several questions about a picture in training, and one in a test record."""
    train, test, official = [], [], {}
    for number in range(tree.records):
        image = f"GQA/images/{2000000 + number}.jpg"
        turns = [(tree.ask(q), a) for q, a in _questions(tree.scene(image, number))]
        train.append(_conversation(str(number), f"./{image}", *turns))
        image = f"GQA/images/n{number}.jpg"
        question, answer = _questions(tree.scene(image, number))[number % 3]
        identity = f"{20000000 + number}"
        test.append(_question(identity, f"./{image}", tree.ask(question), answer))
        official[identity] = {
            "imageId": f"n{number}", "question": question, "answer": answer, "isBalanced": True,
        }  # fmt: skip
    tree.official("GQA/testdev_balanced_questions.json", official)
    unanswered = _conversation("unanswered", train[0]["image"], (tree.ask("Is it red?"), "no"))
    del unanswered["conversations"][1]
    return [*train, unanswered], test


def _vizwiz(tree: Tree) -> tuple[Records, Records]:
    train, test = [], []
    for number in range(tree.records):
        for split, records in (("train", train), ("val", test)):
            image = f"VizWiz/{split}/VizWiz_{split}_{number:08}.jpg"
            scene = tree.scene(image, number)
            answer = "unanswerable" if number % 5 == 0 else scene.colour
            text = tree.ask("When is it open?" if number % 5 == 0 else "What colour is this?")
            if split == "train":
                records.append(_conversation(str(number), f"./{image}", (text, answer)))
            else:
                records.append(_question(str(number), f"./{image}", text, answer))
    unnamed = _conversation("unnamed", train[0]["image"], (text, "red"))
    del unnamed["image"]
    return [*train, unnamed], test


def _grounding(tree: Tree) -> tuple[Records, Records]:
    """Boxes relative to the picture padded to a square."""
    train, test = [], []
    for number in range(2 * tree.records):
        image = f"COCO2014/train2014/COCO_train2014_{number:012}.jpg"
        scene = tree.scene(image, number)
        text = f"{_where(tree)}{scene.name}."
        padded = _relative(scene.box, scene.size, padded=True)
        if number < tree.records:
            train.append(_conversation(str(number), image, (text, padded)))
        else:
            test.append(
                {
                    **_question(number, f"./{image}", text, ""),
                    "answer_bbox": padded,
                    "size": list(scene.size),
                    "origin_answer_bbox": _relative(scene.box, scene.size, padded=False),
                }
            )
            del test[-1]["answer"]
    return [*train, _conversation("three", image, (text, "[0.1, 0.2, 0.3]"))], test


def _vqav2(tree: Tree) -> tuple[Records, Records]:
    train, test = [], []
    for number in range(tree.records):
        image = f"COCO2014/train2014/COCO_train2014_{900000 + number:012}.jpg"
        turns = [(tree.ask(q), a) for q, a in _questions(tree.scene(image, number))]
        train.append(_conversation(number, f"./{image}", *turns))
        image = f"COCO2014/val2014/COCO_val2014_{number:012}.jpg"
        question, answer = _questions(tree.scene(image, number))[number % 3]
        test.append(_question(number * 1000, f"./{image}", tree.ask(question), answer))
    return [*train, dict(test[0])], test  # a record of the other split


def _ocrvqa(tree: Tree) -> tuple[Records, Records]:
    """Covers, some of whose names have a doubled extension that the file has not."""
    train, test = [], []
    for number in range(2 * tree.records):
        title = letters(tree.random, 5)
        image = f"OCR-VQA/images/{number:09}X.jpg"
        tree.scene(image, number, title)
        name = f"./{image}.jpg" if number % 3 == 0 else f"./{image}"
        asked = tree.ask("What is the title of this book?")
        if number < tree.records:
            genre = (tree.ask("Is this a book about shapes?"), "Yes")
            train.append(_conversation(f"{number:09}X", name, (asked, title), genre))
        else:
            test.append(_question(f"{number:09}X_0", name, asked, title))
    cut = tree.root / "OCR-VQA/images/cut.jpg"
    cut.write_bytes((tree.root / image).read_bytes()[:-200])
    return [*train, _conversation("cut", "./OCR-VQA/images/cut.jpg", (asked, title))], test


WRITERS: dict[str, Callable[[Tree], tuple[Records, Records]]] = {
    "ScienceQA": _scienceqa,
    "TextVQA": _textvqa,
    "ImageNet": _imagenet,
    "GQA": _gqa,
    "VizWiz": _vizwiz,
    "Grounding": _grounding,
    "VQAv2": _vqav2,
    "OCRVQA": _ocrvqa,
}


def _questions(scene: Scene) -> list[tuple[str, str]]:
    return [
        ("Which shape is it?", scene.shape),
        ("Which colour has it?", scene.colour),
        (f"Is there a {scene.shape}?", "yes"),
    ]


def _where(tree: Tree) -> str:
    """The instruction for boxes: Original, and another for the other two."""
    if tree.style == "Original":
        return WHERE
    return (
        "Identify and provide the bounding box coordinates that match the description given in "
        "this sentence: "
    )


def _conversation(identity: Any, image: str | None, *turns: tuple[str, str]) -> dict[str, Any]:
    """A training record in LLaVA's schema."""
    said = [
        {"from": side, "value": text}
        for turn in turns
        for side, text in zip(("human", "gpt"), turn, strict=True)
    ]
    if image:
        said[0]["value"] = f"<image>\n{said[0]['value']}"
    return {"id": identity, **({"image": image} if image else {}), "conversations": said}


def _question(identity: Any, image: str | None, text: str, answer: str, mark: bool = False) -> dict:
    """A test record; `mark` puts the mark of the picture before the text, as in ScienceQA's."""
    shown = {"image": image} if image else {}
    text = f"<image>\n{text}" if image and mark else text
    return {"question_id": identity, **shown, "text": text, "answer": answer}


def _relative(box: Box, size: tuple[int, int], padded: bool) -> str:
    """A box relative to the picture, or to the picture padded to a square (the released rule)."""
    width, height = size
    side = max(size)
    left, top = ((side - width) / 2, (side - height) / 2) if padded else (0, 0)
    across, down = (side, side) if padded else size
    x0, y0, x1, y1 = box
    values = (x0 + left) / across, (y0 + top) / down, (x1 + left) / across, (y1 + top) / down
    return "[" + ", ".join(f"{value:.3f}" for value in values) + "]"


def _write(path: Path, content: Any, indent: int | None = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False))
