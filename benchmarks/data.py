"""Conversion and reading of shards, against the JSON file and folder of pictures of the field.

The field's `LazySupervisedDataset` loads one JSON file of all records; for each item it copies a
conversation and opens a picture's file. Ours maps shards of Arrow into memory. *Opening* is what a
stage needs before its first batch: the records, and their lengths, by which batches are grouped.
*Reading* is an example drawn at random with the encoded bytes of its picture, with all files in the
page cache and, on this disk, with none there, though the folder's names stay in memory; what a
network adds was not measured. To decode a picture takes as long on both sides, and ten times as
long and more as to read it: shards make no epoch shorter, but are open at once, in next to no
memory, and few files. *Preparing* goes on from those bytes to what LLaVA-1.5's tower takes, of 336
x 336 pixels; that is most of what is done for an example before the model. *Conversion* is of
CoIN's format, every picture decoded to see that it is whole; its rate is by the wall's clock, so
other work on the same cores lowers it.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from bench import Claim, in_own_process, ratio, seconds, side_by_side
from palimpsest.data import shards
from palimpsest.data.convert import convert
from palimpsest.data.example import Example, Turn
from palimpsest.data.shards import Shards, write_dataset

EXAMPLES = 10**6  # whose metadata are opened
BATCHES = 8  # a shard, as many as where pictures have 130 KB
PICTURES = 512
READS = 20  # of each picture in a repeat
LARGE, SMALL = (640, 480), (96, 72)  # pixels
SEEN = 336  # pixels of a side, by LLaVA-1.5
TIMES = 4  # as many examples, to be converted in the same memory


def claims() -> list[Claim]:
    """Measure in a temporary directory, for some three minutes."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        return [*of_opening(root / "opening"), *of_reading(root), *of_conversion(root)]


def of_opening(root: Path) -> list[Claim]:
    """Open the metadata of a million examples."""
    dataset, file = root / "dataset", root / "train.json"
    write_many(dataset, file)

    def opened() -> Shards:
        return Shards(dataset, "train")

    def loaded() -> list[dict[str, Any]]:
        with file.open() as f:
            return json.load(f)

    def lengths_of_records() -> list[int]:
        return [sum(len(turn["value"]) for turn in r["conversations"]) for r in loaded()]

    ours, theirs = memory_of(opened), memory_of(loaded)
    ways = {
        "shards": lambda: len(opened()),
        "shards, lengths": lambda: opened().characters(),
        "JSON, lengths": lengths_of_records,
    }
    costs, given = side_by_side(ways, warm_up=False)
    assert given["shards"] == EXAMPLES
    assert given["shards, lengths"] == given["JSON, lengths"]
    files = sum(1 for _ in dataset.rglob("*.arrow"))
    shutil.rmtree(root)
    return [
        seconds(
            "opening the metadata of 10⁶ examples",
            costs["shards"],
            goal="≤ 1",
            beside=f"{files} shards; {ours:.2f} GB of a process's own memory",
        ),
        ratio(
            "opening 10⁶ examples and knowing their lengths, against one JSON file",
            costs["shards, lengths"],
            costs["JSON, lengths"],
            beside=f"lengths equal; the records of the JSON hold {theirs:.2f} GB in every process",
        ),
    ]


def of_reading(root: Path) -> list[Claim]:
    """Read examples at random, with pictures as large as photographs' and small ones."""
    found = []
    for name, size, goal in (("large", LARGE, "≥ 20"), ("small", SMALL, "")):
        write_pictures(root / name / "pictures", size)
        write_records(root, name, PICTURES)
        converted(root, name, threads=1)
        found.append(reading(root, name, goal))
    return [*found, reading_cold(root, "large"), decoding(root, "large"), preparing(root, "large")]


def reading(root: Path, name: str, goal: str) -> Claim:
    """Read examples with the bytes of their pictures."""
    ours, theirs = by_shards(root, name), by_folder(root, name)
    order = np.random.default_rng(0).integers(0, PICTURES, PICTURES * READS).tolist()
    costs, _ = side_by_side(
        {"shards": lambda: each(ours, order), "folder": lambda: each(theirs, order)}
    )
    assert all(ours(k).image == theirs(k)[0] for k in range(PICTURES))
    share = 1e6 / len(order)
    size = sum(len(ours(k).image) for k in range(PICTURES)) / PICTURES / 1000
    beside = [
        f"{median(c.cpu for c in costs['shards']) * share:.0f} µs an example against "
        f"{median(c.cpu for c in costs['folder']) * share:.0f}, bytes equal"
    ]
    if goal:
        beside.append(
            "from a warm cache a file costs little more than the copy of its bytes, which both "
            "sides make, so that no reader can be 20 × as fast"
        )
    what = f"reading an example with a picture of {size:.0f} KB, against JSON and folder"
    return ratio(what, costs["shards"], costs["folder"], goal=goal, beside="; ".join(beside))


def reading_cold(root: Path, name: str) -> Claim:
    """Read each example once in processes of their own, which find no picture in memory."""
    found: dict[str, list[float]] = {"shards": [], "folder": []}

    def run(way: str) -> None:
        found[way].append(in_own_process(__file__, "read", root, name, way)["seconds"] / PICTURES)

    side_by_side({way: partial(run, way) for way in found}, warm_up=False)
    ratios = [theirs / ours for ours, theirs in zip(*found.values(), strict=True)]
    ours, theirs = (1e6 * median(seconds) for seconds in found.values())
    return claim(
        "the same from the disk, by the wall's clock",
        ratios,
        "×",
        beside=f"{ours:.0f} µs an example against {theirs:.0f}",
    )


def read_cold(root: Path, name: str, way: str) -> dict[str, Any]:
    """Read each example once in random order; return the seconds that it took."""
    read = {"shards": by_shards, "folder": by_folder}[way](root, name)
    for path in [*(root / "data" / name).rglob("*.arrow"), *(root / name).rglob("*.jpg")]:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    order = np.random.default_rng().permutation(PICTURES).tolist()
    begun = time.perf_counter()
    each(read, order)
    return {"seconds": time.perf_counter() - begun}


def decoding(root: Path, name: str) -> Claim:
    """Read examples and decode their pictures, as a training step does."""
    ours, theirs = by_shards(root, name), by_folder(root, name)
    order = np.random.default_rng(0).permutation(PICTURES).tolist()
    ways = {
        "shards, decoded": lambda: [decoded(ours(k).image) for k in order],
        "folder, decoded": lambda: [decoded(theirs(k)[0]) for k in order],
    }
    costs, given = side_by_side(ways)
    assert given["shards, decoded"] == given["folder, decoded"]
    return ratio(
        "the same with the picture decoded",
        costs["shards, decoded"],
        costs["folder, decoded"],
        beside="pixels equal; the decoding is nearly all of it on both sides, but leaves the "
        "processor's caches without what ours reads: some 0.1 ms more than a file takes",
    )


def preparing(root: Path, name: str) -> Claim:
    """Make pixel values of pictures' bytes, as LLaVA-1.5 and the demo's model have it."""
    from transformers import CLIPImageProcessorPil

    from palimpsest.models.pictures import opened, pixel_values

    square = {"height": SEEN, "width": SEEN}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SEEN}, crop_size=square)
    read = by_shards(root, name)
    images = [read(k).image for k in range(0, PICTURES, 8)]

    def looked_up() -> Any:
        return [pixel_values(processor, opened(image)) for image in images][-1]

    def processed() -> Any:
        return [processor(opened(image), return_tensors="pt") for image in images][-1]

    costs, given = side_by_side({"looked up": looked_up, "processed": processed})
    assert given["looked up"].equal(given["processed"]["pixel_values"])
    share = 1000 / len(images)
    ours, theirs = (share * median(cost.cpu for cost in costs[way]) for way in costs)
    return ratio(
        "preparing a picture for LLaVA-1.5, against transformers' image processor",
        *costs.values(),
        beside=f"{ours:.1f} ms a picture against {theirs:.1f}, decoding included; pixel values "
        "equal to the last bit",
    )


def of_conversion(root: Path) -> list[Claim]:
    """Convert with one core and with all of them, and several times as many examples."""
    write_records(root, "more", PICTURES * TIMES)
    cores = sorted(os.sched_getaffinity(0))
    runs: dict[str, list[dict[str, Any]]] = {"one core": [], "all cores": [], "more": []}

    def run(way: str, name: str, cores: list[int]) -> None:
        runs[way].append(in_own_process(__file__, "convert", root, name, *cores))

    side_by_side(
        {
            "one core": lambda: run("one core", "large", cores[:1]),
            "all cores": lambda: run("all cores", "large", cores),
            "more": lambda: run("more", "more", cores),
        },
        warm_up=False,
    )
    assert all(run["shards"] == runs["one core"][0]["shards"] for run in runs["all cores"])
    one, every = (
        [PICTURES / run["seconds"] for run in runs[way]] for way in ("one core", "all cores")
    )
    times = [b / a for a, b in zip(one, every, strict=True)]
    peaks = [run["peak"] for run in runs["all cores"]]
    growth = [b["peak"] / a["peak"] for a, b in zip(runs["all cores"], runs["more"], strict=True)]
    return [
        claim("conversion with one core", one, "pictures/s"),
        claim(
            f"conversion with {len(cores)} cores",
            every,
            "pictures/s",
            beside=f"{median(times):.2f} × as fast as with one; shards equal",
        ),
        claim(
            f"peak memory of a conversion of {TIMES} × as many examples",
            growth,
            "×",
            goal="≤ 1.1",
            beside=f"{median(peaks):.2f} GB for {PICTURES} examples",
        ),
    ]


def claim(what: str, values: list[float], unit: str, goal: str = "", beside: str = "") -> Claim:
    """Claim the median of what repeats gave."""
    return Claim(what, median(values), min(values), max(values), unit, goal, beside)


def write_many(dataset: Path, file: Path) -> None:
    """Write a million examples of one question, in shards of as many as if pictures were large."""
    examples = (
        Example(
            f"vqav2/train/{k:08}",
            b"",
            (Turn(f"What is to be seen in picture {k}, on the left?\nAnswer briefly.", f"A {k}"),),
            (f"A {k}",),
            image_size=LARGE,
        )
        for k in range(EXAMPLES)
    )
    shards.SHARD_BYTES, usual = BATCHES * shards.BATCH_ROWS * 200, shards.SHARD_BYTES
    write_dataset(dataset, {"train": examples}, {})
    shards.SHARD_BYTES = usual
    records = (
        record(e.id, f"train2014/{e.id[-8:]}.jpg", e.turns[0]) for e in Shards(dataset, "train")
    )
    file.write_text(json.dumps(list(records)))


def record(id: str, picture: str, turn: Turn) -> dict[str, Any]:
    """Return a record in LLaVA's schema."""
    said = [{"from": "human", "value": turn.question}, {"from": "gpt", "value": turn.answer}]
    return {"id": id, "image": picture, "conversations": said}


def write_pictures(folder: Path, size: tuple[int, int]) -> None:
    """Write pictures that are about as hard to compress as photographs are."""
    folder.mkdir(parents=True)
    random, (width, height) = np.random.default_rng(0), size
    for k in range(PICTURES):
        coarse_HWC = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        smooth_HWC = np.asarray(Image.fromarray(coarse_HWC).resize(size, Image.Resampling.BICUBIC))
        noise_HWC = random.integers(-12, 13, smooth_HWC.shape)
        picture = Image.fromarray((smooth_HWC + noise_HWC).clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{k:06}.jpg", quality=90)


def write_records(root: Path, name: str, count: int) -> None:
    """Write a task in CoIN's format, which shows every picture, and then all of them again."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    turn = Turn("<image>\nWhat is to be seen in the picture, on the left?", "A field")
    pictures = [f"pictures/{k % PICTURES:06}.jpg" for k in range(count)]
    records = [record(f"{k:08}", picture, turn) for k, picture in enumerate(pictures)]
    asked = {"question_id": "0", "image": pictures[0], "text": turn.question, "answer": "A field"}
    (folder / "train.json").write_text(json.dumps(records))
    (folder / "test.json").write_text(json.dumps([asked]))


def converted(root: Path, name: str, threads: int) -> dict[str, Any]:
    """Convert a task; return its manifest."""
    return convert(
        name,
        reader="coin",
        source={
            "kind": "words",
            "instructions": name,
            "pictures": {"pictures": f"{'small' if name == 'small' else 'large'}/pictures"},
            "expected": {},
        },
        prompt="{question}",
        about={},
        most_rejected=0.0,
        out=root / "data" / name,
        root=root,
        threads=threads,
    )


def by_shards(root: Path, name: str) -> Callable[[int], Example]:
    """Return what gives an example of our shards."""
    return Shards(root / "data" / name, "train").__getitem__


def by_folder(root: Path, name: str) -> Callable[[int], tuple[bytes, list[dict[str, str]]]]:
    """Return what gives a picture and its conversation as LLaVA's dataset does."""
    folder = str(root / name)
    records = json.loads((root / name / "train.json").read_text())

    def item(index: int) -> tuple[bytes, list[dict[str, str]]]:
        record = records[index]
        with open(os.path.join(folder, record["image"]), "rb") as file:
            return file.read(), deepcopy(record["conversations"])

    return item


def each(read: Callable[[int], Any], order: Iterable[int]) -> None:
    """Read examples, and keep none."""
    for index in order:
        read(index)


def decoded(image: bytes) -> tuple[tuple[int, int], bytes]:
    """Return the size of a picture and a pixel of it, once it is decoded."""
    with Image.open(io.BytesIO(image)) as picture:
        pixels = picture.convert("RGB")
    return pixels.size, pixels.getpixel((1, 1))


def memory_of(work: Callable[[], Any]) -> float:
    """Return how much memory of this process's own what is made holds, in GB."""
    gc.collect()
    before = memory("RssAnon")
    made = work()
    held = memory("RssAnon") - before
    del made
    return held


def memory(what: str) -> float:
    """Return a figure of this process in GB: VmHWM, its peak; RssAnon, what no file backs."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith(what)) / 2**20


def convert_on(root: Path, name: str, *cores: str) -> dict[str, Any]:
    """Convert a task on some cores only; return seconds, peak memory in GB, and its shards."""
    os.sched_setaffinity(0, set(map(int, cores)))
    begun = time.perf_counter()
    manifest = converted(root, name, threads=len(cores))
    return {
        "seconds": time.perf_counter() - begun,
        "peak": memory("VmHWM"),
        "shards": manifest["splits"]["train"]["shards"],
    }


WORK = {"convert": convert_on, "read": read_cold}

if __name__ == "__main__":
    what, root, *arguments = sys.argv[1:]
    print(json.dumps(WORK[what](Path(root), *arguments)))
