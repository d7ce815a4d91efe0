"""He et al.'s nine datasets in small: their publishers' files with made-up records, and pictures.

A folder stands for each download of the full datasets, so that a task's files have the same names
below `cit-miniature/`. The training file of each dataset has one record that is bad, each in
another way; where a file holds several splits, it has records of a split that nobody reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from palimpsest.data.pictures.drawing import COLOURS, SHAPES, letters, pick, shape_mask

SIZES = ((96, 64), (64, 96), (80, 80))
YEAR = {"train": "train2014", "val": "val2014"}
CAPTIONS = (
    "A {colour} {shape} on a dark background.",
    "There's a {colour} {shape} in the picture",
    "A dark picture with one {shape}, which is {colour}.",
    "the {shape} is {colour}",
    "Someone has drawn a {colour} {shape}; nothing else is there.",
)


def generate(out: Path, seed: int = 0, records: int = 24) -> None:
    """Write the tree below `out`, with `records` good questions or captioned pictures a split."""
    for number, write in enumerate(WRITERS):
        write(Tree(out, np.random.default_rng([seed, number]), records))


@dataclass(frozen=True)
class Scene:
    """A coloured shape in a picture."""

    colour: str
    shape: str

    def question(self, number: int) -> tuple[str, str]:
        """Return a question about it, and the answer."""
        return (
            ("Which shape is it?", self.shape),
            ("Which colour has it?", self.colour),
            (f"Is there a {self.shape}?", "yes"),
        )[number % 3]

    def captions(self) -> list[str]:
        """Return five captions of it."""
        return [text.format(colour=self.colour, shape=self.shape) for text in CAPTIONS]


@dataclass(frozen=True)
class Tree:
    """Where files are written, and how many records are wanted."""

    root: Path
    random: np.random.Generator
    records: int

    def scene(self, path: str, number: int, text: str = "") -> Scene:
        """Draw the picture number `number` and return what it shows."""
        size = SIZES[number % len(SIZES)]
        side = int(self.random.integers(24, 44))
        corner = tuple(int(self.random.integers(0, length - side)) for length in size)
        scene = Scene(pick(self.random, list(COLOURS)), pick(self.random, SHAPES))
        picture = Image.new("RGB", size, (40, 40, 48))
        picture.paste(COLOURS[scene.colour], corner, shape_mask(scene.shape, side))
        if text:
            ImageDraw.Draw(picture).text((4, 4), text, "white", ImageFont.load_default(14))
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(self.root / path, quality=90)
        return scene

    def coco(self, split: str, number: int, offset: int) -> tuple[int, Scene]:
        """Draw a picture of COCO 2014; return its number there and what it shows."""
        image, part = offset + number, YEAR[split]
        return image, self.scene(f"coco-{part}/{part}/COCO_{part}_{image:012}.jpg", number)

    def write(self, path: str, content: Any) -> None:
        """Write a JSON file in one line, as publishers do."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(json.dumps(content, ensure_ascii=False))


def _vqa(tree: Tree, name: str, prefix: str, offset: int) -> None:
    """Questions and annotations of VQAv2 or OK-VQA; a training question has no annotation."""
    for split, part in YEAR.items():
        questions, annotations = [], []
        for number in range(tree.records):
            image, scene = tree.coco(split, number, offset)
            question, answer = scene.question(number)
            asked = {"image_id": image, "question": question, "question_id": 1000 * image + 5}
            questions.append(asked)
            annotation = {
                "question_type": "which", "answer_type": "other", "image_id": image,
                "question_id": asked["question_id"], "answers": _people(answer),
            }  # fmt: skip
            if name == "vqav2":
                annotation["multiple_choice_answer"] = answer
            annotations.append(annotation)
        if split == "train":
            questions.append({**asked, "question_id": 7})
        about = {"info": {"version": "0"}, "data_type": "mscoco", "data_subtype": part}
        file = f"{prefix}OpenEnded_mscoco_{part}_questions.json"
        tree.write(f"{name}-questions-{split}/{file}", {**about, "questions": questions})
        file = f"{prefix}mscoco_{part}_annotations.json"
        content = {"annotations": annotations, **about}
        tree.write(f"{name}-annotations-{split}/{file}", content)


def _vqav2(tree: Tree) -> None:
    _vqa(tree, "vqav2", "v2_", 1000)


def _okvqa(tree: Tree) -> None:
    _vqa(tree, "okvqa", "", 2000)


def _aokvqa(tree: Tree) -> None:
    """Some training pictures lie in COCO's val2014; one record has no right option."""
    for split in YEAR:
        records = []
        for number in range(tree.records):
            part = "val" if number % 4 == 0 else split
            image, scene = tree.coco(part, number, 3000 if split == "train" else 4000)
            others = [shape for shape in SHAPES if shape != scene.shape][:3]
            choices = [*others[: number % 4], scene.shape, *others[number % 4 :]]
            records.append(
                {
                    "split": split, "image_id": image, "question_id": f"q{image}",
                    "question": "Which shape is it?", "choices": choices,
                    "correct_choice_idx": number % 4, "direct_answers": [scene.shape] * 10,
                    "difficult_direct_answer": False, "rationales": ["It looks like one."] * 3,
                }
            )  # fmt: skip
        if split == "train":
            records.append({**records[0], "question_id": "none", "correct_choice_idx": 4})
        tree.write(f"aokvqa/aokvqa_v1p0_{split}.json", records)


def _gqa(tree: Tree) -> None:
    """One training question has no answer, as in the files of the hidden splits."""
    for split in ("train", "testdev"):
        questions = {}
        for number in range(tree.records):
            image = f"{2000000 + number}" if split == "train" else f"n{number}"
            scene = tree.scene(f"gqa-images/images/{image}.jpg", number)
            question, answer = scene.question(number)
            questions[f"{20000000 + number}"] = {
                "imageId": image, "question": question, "answer": answer, "isBalanced": True,
                "fullAnswer": f"It is {answer}.", "groups": {"global": None, "local": None},
            }  # fmt: skip
        if split == "train":
            hidden = {"imageId": image, "question": question, "isBalanced": True}
            questions["29999999"] = hidden
        tree.write(f"gqa-questions/{split}_balanced_questions.json", questions)


def _ocrvqa(tree: Tree) -> None:
    """Books of three splits with two questions each; a cover of the first is not to be had."""
    books = {}
    for number in range(3 * tree.records):
        title, key = letters(tree.random, 5), f"{number:09}X"
        tree.scene(f"ocrvqa/images/{key}.jpg", number, title)
        books[key] = _book(title, 1 + number % 3)
    books["000099999X"] = _book(title, 1)
    books["000099999X"]["questions"].pop()
    books["000099999X"]["answers"].pop()
    tree.write("ocrvqa-questions/dataset.json", books)


def _book(title: str, split: int) -> dict[str, Any]:
    return {
        "imageURL": "http://books.example/cover.jpg", "authorName": "A. Nobody", "title": title,
        "genre": "Arts & Photography", "split": split,
        "questions": ["What is the title of this book?", "Who wrote this book?"],
        "answers": [title, "A. Nobody"],
    }  # fmt: skip


def _vizwiz(tree: Tree) -> None:
    """One training record has nine answers."""
    for split in ("train", "val"):
        records = []
        for number in range(tree.records):
            image = f"VizWiz_{split}_{number:08}.jpg"
            scene = tree.scene(f"vizwiz-{split}/{split}/{image}", number)
            known = number % 5 > 0
            answer = scene.colour if known else "unanswerable"
            records.append(
                {
                    "image": image, "question": "What color is this?" if known else "When is it?",
                    "answers": [{"answer": a["answer"], "answer_confidence": "yes"}
                                for a in _people(answer)],
                    "answer_type": "other" if known else "unanswerable", "answerable": int(known),
                }
            )  # fmt: skip
        if split == "train":
            records.append({**records[0], "answers": records[0]["answers"][:9]})
        tree.write(f"vizwiz-annotations/Annotations/{split}.json", records)


def _textvqa(tree: Tree) -> None:
    """One training record is of another split."""
    for split, folder in (("train", "textvqa-train"), ("val", "textvqa-answers")):
        records, read = [], []
        for number in range(tree.records):
            word, image = letters(tree.random, 4), f"{number:015x}{split[0]}"
            tree.scene(f"textvqa-images/train_images/{image}.jpg", number, word)
            answers = [a["answer"] for a in _people(word.lower())]
            records.append(
                {
                    "question_id": (0 if split == "train" else 34602) + number, "image_id": image,
                    "question": "what does the sign say?", "answers": answers, "set_name": split,
                    "image_classes": ["Traffic sign"], "image_width": 96, "image_height": 64,
                }
            )  # fmt: skip
            read.append({"image_id": image, "ocr_tokens": [word, "5"], "ocr_info": []})
        if split == "train":
            records.append({**records[0], "question_id": 9, "set_name": "val"})
        about = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        tree.write(f"{folder}/TextVQA_0.5.1_{split}.json", {**about, "data": records})
        file = f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
        tree.write(f"textvqa-ocr-{split}/{file}", {"dataset_type": split, "data": read})


def _textcaps(tree: Tree) -> None:
    """Five records a picture; one training record has no caption."""
    for split in ("train", "val"):
        records = []
        for number in range(tree.records):
            image, word = (
                f"{number:015x}{'a' if split == 'train' else 'b'}",
                letters(tree.random, 4),
            )
            scene = tree.scene(f"textvqa-images/train_images/{image}.jpg", number, word)
            captions = [f"{text} It says '{word}'." for text in scene.captions()]
            records += [
                {
                    "caption_id": len(records) + at, "caption_str": caption, "image_id": image,
                    "image_name": image, "image_path": f"{split}/{image}.jpg", "set_name": split,
                    "reference_strs": captions,
                }
                for at, caption in enumerate(captions)
            ]  # fmt: skip
        if split == "train":
            records.append({**records[0], "caption_id": len(records), "caption_str": ""})
        about = {"dataset_type": split, "dataset_name": "textcaps", "dataset_version": "0.1"}
        tree.write(f"textcaps-{split}/TextCaps_0.1_{split}.json", {**about, "data": records})


def _flickr30k(tree: Tree) -> None:
    """Pictures of three splits, in no order; the file of one for training is damaged."""
    images = []
    for number in range(3 * tree.records):
        name = f"{1000000 + number}.jpg"
        scene = tree.scene(f"flickr30k-images/flickr30k-images/{name}", number)
        images.append(_captioned(name, ("train", "val", "test")[number % 3], number, scene))
    (tree.root / "flickr30k-images/flickr30k-images/damaged.jpg").write_bytes(b"<html>404</html>")
    images.append(_captioned("damaged.jpg", "train", number + 1, scene))
    tree.write(
        "karpathy-captions/dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"}
    )


def _captioned(name: str, split: str, number: int, scene: Scene) -> dict[str, Any]:
    sentences = [
        {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": 5 * number + at}
        for at, text in enumerate(scene.captions())
    ]
    ids = [sentence["sentid"] for sentence in sentences]
    return {
        "sentids": ids, "imgid": number, "sentences": sentences, "split": split, "filename": name,
    }  # fmt: skip


def _people(answer: str) -> list[dict[str, Any]]:
    """Return the answers of ten people, seven of whom say the same."""
    said = [answer] * 7 + [f"the {answer}", answer.title(), "i don't know"]
    return [
        {"answer": text, "raw_answer": text, "answer_confidence": "yes", "answer_id": at}
        for at, text in enumerate(said, start=1)
    ]


WRITERS = (
    _okvqa, _aokvqa, _textcaps, _vqav2, _ocrvqa, _flickr30k, _vizwiz, _textvqa, _gqa,
)  # fmt: skip
