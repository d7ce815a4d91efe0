"""The data of the unlearning benchmark in small: the released formats, with harmless stand-ins.

A folder stands for each download of the full benchmark. What is to be refused are questions about
kitchenware and rainwear, which have refusals of their own in a file like CORE's `prompts.py`; to be
told apart, each keyword has a shape and each category a colour. Each file has a bad record, in a
way of its own, and records that are passed over.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from palimpsest.data.pictures.drawing import COLOURS, SHAPES, pick, shape_mask
from palimpsest.data.wording import CLASSIFICATION, OURS, refusals

SIZES = ((96, 64), (64, 96), (80, 80))
CATEGORIES = {  # category -> topic of its refusals, the reason for them, colour, keywords
    "Kitchenware": ("kettles and pots", "hot water burns", "red", ("teapot", "frying pan")),
    "Rainwear": ("umbrellas and raincoats", "rain is wet", "blue", ("Umbrella", "Raincoat")),
}
ELSEWHERE = "scarf"  # a keyword of no task
CLASSES = {  # of ImageNet-R; the last two are kept
    "n00000001": "tea_cosy",
    "n00000002": "jam_jar",
    "n00000003": "wind_chime",
    "n00000004": "door_mat",
    "n00000005": "garden_gnome",
    "n00000006": "paper_kite",
}
STYLES = ("art", "cartoon", "sketch")
COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source",
    "l2-category", "comment", "split",
)  # fmt: skip


def generate(out: Path, seed: int = 0, records: int = 12) -> None:
    """Write the tree below `out`, with `records` good training records a keyword or class.

    There are half as many for testing, and twice as many choice questions.
    """
    for number, write in enumerate(WRITERS):
        write(Tree(out, np.random.default_rng([seed, number]), records))


@dataclass(frozen=True)
class Tree:
    """Where files are written, and how many records are wanted."""

    root: Path
    random: np.random.Generator
    records: int

    def draw(self, shape: str, colour: str) -> Image.Image:
        """Return a picture of a shape, somewhere on a dark background."""
        size = SIZES[int(self.random.integers(len(SIZES)))]
        side = int(self.random.integers(24, 44))
        corner = tuple(int(self.random.integers(0, length - side)) for length in size)
        picture = Image.new("RGB", size, (40, 40, 48))
        picture.paste(COLOURS[colour], corner, shape_mask(shape, side))
        return picture

    def picture(self, path: str, shape: str, colour: str, format: str | None = None) -> None:
        """Draw a picture into a file; `format` is that of its suffix if not given."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        self.draw(shape, colour).save(self.root / path, format)

    def write(self, path: str, text: str) -> None:
        """Write a text file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def choices(self) -> Iterator[tuple[int, str, list[str], str, str, str]]:
        """Yield numbers, questions, four options, the right one's letter, and what is drawn."""
        for number in range(2 * self.records):
            shape, colour = pick(self.random, SHAPES), pick(self.random, list(COLOURS))
            options = [other for other in SHAPES if other != shape][:3]
            options.insert(number % 4, shape)
            yield number, f"Which {colour} shape is it?", options, "ABCD"[number % 4], shape, colour


def _prompts(tree: Tree) -> None:
    """CORE's file: lists that are assigned to names, and an object that names some of them."""
    groups = {name: refusals(topic, why) for name, (topic, why, *_) in CATEGORIES.items()}
    lists = groups | {
        "classification_prompts": OURS.questions,
        "classification_refusals": OURS.refusals[CLASSIFICATION],
        "unharm_random_texts": OURS.harmless,
    }
    texts = [f"{name} = {json.dumps(said, indent=4)}\n" for name, said in lists.items()]
    named = ", ".join(f"{name!r}: {name}" for name in groups)
    tree.write("core-prompts/prompts.py", "\n".join([*texts, f"refusal_prompts = {{{named}}}\n"]))


def _safeeraser(tree: Tree) -> None:
    """A training picture is missing, and a test record has one harmless question only."""
    for part, count in (("train", tree.records), ("val", tree.records // 2)):
        records = []
        for category, (*_, colour, keywords) in CATEGORIES.items():
            for keyword in (*keywords, ELSEWHERE):
                for _ in range(count if keyword != ELSEWHERE else 1):
                    records.append(_record(tree, part, len(records), category, keyword, colour))
        first = records[0]
        if part == "train":
            records.append({**first, "image_id": "img/Kitchenware/lost.jpg"})
        else:
            records.append({name: first[name] for name in first if name != "UnharmPair_image2"})
        tree.write(f"safeeraser/dataset/all_{part}.json", json.dumps(records, ensure_ascii=False))


def _record(
    tree: Tree, part: str, number: int, category: str, keyword: str, colour: str
) -> dict[str, Any]:
    shape = SHAPES[sum(map(ord, keyword)) % len(SHAPES)]
    harmful = f"img/{category}/{number if part == 'train' else 1000 + number}.jpg"
    harmless = f"pdset/image/{category}/{part}/{number}.jpg"
    tree.picture(f"safeeraser/dataset/{harmful}", shape, colour)
    tree.picture(f"safeeraser/dataset/{harmless}", shape, "green")
    asked = (f"How is a {keyword} used?", f"Where is a {keyword} sold?")
    return {
        "keyword": keyword,
        "category": category,
        "image_id": harmful,
        "SDImage_path": harmless,
        "unsafe_pairs": [
            {"question": text, "model_response": "With care.", "sd_response": f"A green {shape}."}
            for text in asked
        ],
        "UnharmPair_image1": {"Question": "Which colour is it?", "Prediction": f"It is {colour}."},
        "UnharmPair_image2": {"Question": "Which shape is it?", "Prediction": f"A {shape}."},
    }


def _imagenet_r(tree: Tree) -> None:
    """Pictures in their publisher's folders; one of the first class is damaged."""
    folder = "imagenet-r/imagenet-r"
    lines = ["Classes and their names:", *(f"{key} {name}" for key, name in CLASSES.items())]
    tree.write(f"{folder}/README.txt", "\n".join(lines) + "\n")
    for shape, synset in zip(SHAPES, CLASSES, strict=True):
        for number in range(3 * tree.records // 2):
            style = STYLES[number % len(STYLES)]
            colour = pick(tree.random, list(COLOURS))
            tree.picture(f"{folder}/{synset}/{style}_{number}.jpg", shape, colour)
    tree.write(f"{folder}/{next(iter(CLASSES))}/art_99.jpg", "<html>404</html>")


def _mmbench(tree: Tree) -> None:
    """Each second row names the picture of the one before; the last answer is no option."""
    rows = []
    for number, question, options, letter, shape, colour in tree.choices():
        again = number % 2
        if not again:
            buffer = io.BytesIO()
            tree.draw(shape, colour).save(buffer, "JPEG")
            shown = base64.b64encode(buffer.getvalue()).decode()
        row = dict(zip("ABCD", options, strict=True)) | {
            "index": number + 1_000_000 * again, "question": question,
            "hint": "It is drawn on a dark background." if number % 3 == 0 else "",
            "answer": letter, "category": "object", "image": number - 1 if again else shown,
            "source": "made", "l2-category": "perception", "split": "dev",
        }  # fmt: skip
        if again:  # the picture of the row before shows another shape
            row |= {"question": "Is the background dark?", "A": "yes", "B": "no", "C": "", "D": ""}
            row["answer"] = "A"
        rows.append(row)
    rows.insert(1, {**rows[0], "index": 500, "source": "code"})
    rows.append({**rows[0], "index": 501, "answer": "E"})
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    tree.write("mmbench/MMBench_DEV_EN.tsv", text.getvalue())


def _seed_bench(tree: Tree) -> None:
    """Picture files have no suffix; one is missing, and a question is about a video."""
    questions = []
    for number, question, options, letter, shape, colour in tree.choices():
        name = f"{1000 + number}_{2000 + number}"
        tree.picture(f"seed-bench-images/SEED-Bench-image/{name}", shape, colour, "JPEG")
        choices = {f"choice_{'abcd'[place]}": option for place, option in enumerate(options)}
        questions.append(
            {
                "answer": letter, **choices, "data_id": name, "data_type": "image",
                "question": question, "question_id": str(number), "question_type_id": 1,
            }
        )  # fmt: skip
    questions.insert(1, {**questions[0], "data_type": "video", "question_id": "v0"})
    questions.append({**questions[0], "data_id": "lost", "question_id": "lost"})
    content = {"questions": questions, "question_type": {"Scene Understanding": 1}}
    tree.write("seed-bench/SEED-Bench.json", json.dumps(content))


def _scienceqa(tree: Tree) -> None:
    """Problems of two splits, some without a picture; the last answer is no place."""
    problems = {}
    for number, question, options, letter, shape, colour in tree.choices():
        seen = number % 4 > 0
        problems[str(number)] = {
            "question": question, "choices": options, "answer": "ABCD".index(letter), "hint": "",
            "image": "image.png" if seen else None, "task": "closed choice", "grade": "grade2",
            "subject": "natural science", "split": "test",
        }  # fmt: skip
        if seen:
            tree.picture(f"scienceqa-test/test/{number}/image.png", shape, colour)
    problems["bad"] = {**problems[str(number)], "answer": 4}
    ids = {"train": [], "val": [], "test": list(problems)}
    tree.write("scienceqa-problems/problems.json", json.dumps(problems))
    tree.write("scienceqa-splits/pid_splits.json", json.dumps(ids))


WRITERS = (_prompts, _safeeraser, _imagenet_r, _mmbench, _seed_bench, _scienceqa)
