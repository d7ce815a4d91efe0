"""CoIN's released files become examples; records that are none are told, each with its reason."""

from __future__ import annotations

import io
import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from miniatures import converted
from palimpsest.config import Benchmark, Download, Task, load
from palimpsest.data import json_array
from palimpsest.data.example import Example, Rejected, Turn
from palimpsest.data.json_array import elements
from palimpsest.data.miniatures.coin import generate
from palimpsest.data.readers import coin
from palimpsest.data.shards import Shards
from palimpsest.metrics import Scored, metric

TASKS = load(Benchmark, "coin-miniature").tasks


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """The miniature tree, as its download lays it, and every task converted."""
    root = tmp_path_factory.mktemp("results")
    generate(root / "downloads" / "coin-miniature")
    for name in TASKS:
        converted(name, root)
    return root


def examples(miniature, task, split="test"):
    return list(Shards(miniature / "data" / f"mini-{task}", split))


REASONS = {
    "scienceqa": "example '1': an earlier record has this id",
    "textvqa": "there is no picture './TextVQA/train_images/ffffffffffffffff.jpg'",
    "imagenet": "picture './ImageNet_withlabel/train/n00000000/damaged.JPEG' does not decode",
    "gqa": "questions and answers do not alternate",
    "vizwiz": "the text has a picture, and the record names none",
    "grounding": "the box is not four numbers: '[0.1, 0.2, 0.3]'",
    "vqav2": "a test record in the training file",
    "ocrvqa": "example 'cut': the picture does not decode",
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_the_miniature_is_converted(miniature, name):
    short = name.removeprefix("mini-")
    shards = Shards(miniature / "data" / name, "train")
    splits = shards.manifest["splits"]
    assert (splits["train"]["examples"], splits["test"]["examples"]) == (24, 24)
    assert splits["test"]["rejected"] == []
    [rejected] = splits["train"]["rejected"]
    assert rejected["file"].endswith("/train.json")
    assert rejected["line"] == 25
    assert rejected["reason"].startswith(REASONS[short])
    for example in [*shards, *examples(miniature, short)]:
        assert not any("<im" in turn.question for turn in example.turns)
        assert (example.image is None) == (example.image_size is None)
        if example.image:
            assert Image.open(io.BytesIO(example.image)).size == example.image_size


@pytest.mark.parametrize("name", TASKS)
def test_true_answers_score_full_marks(miniature, name):
    task = load(Task, name)
    corrected, published = metric(task.metric), metric(task.as_published)
    for example in Shards(miniature / "data" / name, "test"):
        scored = Scored(
            example.references, example.choices, example.box, example.image_size
        )  # fmt: skip
        answer = example.turns[-1].answer
        assert corrected.score(answer, scored, **task.metric_options) == 1
        assert published.score(answer, scored) == 1


def test_choice_questions(miniature):
    first, second = examples(miniature, "scienceqa")[:2]
    assert (first.id, second.id) == ("25", "26")
    assert first.image is None
    assert first.turns[0].question.startswith("Context: Every shape has a name.\nWhich word has ")
    assert second.turns[0].question.startswith("Which shape is in the picture?\nA. ")
    assert second.references == (second.turns[0].answer,)
    assert f"\n{second.references[0]}. " in second.turns[0].question
    assert all(
        f"\n{letter}. {choice}\n" in second.turns[0].question
        for letter, choice in zip("ABCDE", second.choices, strict=False)
    )


def test_ten_answers(miniature):
    example = examples(miniature, "textvqa")[0]
    assert example.id == "34626"  # a number in the file
    assert len(example.references) == 10
    assert example.references[0] == example.turns[0].answer


def test_several_turns(miniature):
    example = examples(miniature, "gqa", "train")[0]
    assert [turn.answer for turn in example.turns][2] == "yes"
    assert example.references == ("yes",)
    assert example.turns[0].question == (
        "Which shape is it?\nAnswer the question using a single word or phrase."
    )


def test_boxes_are_in_pixels_of_the_picture(miniature):
    for example in examples(miniature, "grounding"):
        picture = Image.open(io.BytesIO(example.image)).convert("L").point(lambda v: 255 * (v > 75))
        assert example.box == pytest.approx(picture.getbbox(), abs=2)


def test_doubled_extensions(miniature):
    folder = miniature / "downloads" / "coin-miniature"
    records = json.loads((folder / "Instructions_Original/OCRVQA/train.json").read_text())
    assert records[0]["image"].endswith("X.jpg.jpg")
    assert (
        examples(miniature, "ocrvqa", "train")[0].image
        == (folder / "cl_dataset/OCR-VQA/images/000000000X.jpg").read_bytes()
    )


@pytest.mark.parametrize("style", ["Diverse", "10Type"])
@pytest.mark.parametrize("task", ["scienceqa", "grounding", "vqav2"])
def test_other_instructions_ask_the_same(miniature, style, task):
    source = load(Task, f"mini-{task}").source
    other = source | {"instructions": source["instructions"].replace("Original", style)}
    original, asked = (
        list(coin.read(s, "test", miniature / "downloads")) for s in (source, other)
    )  # fmt: skip
    assert [e.references for e in asked] == [e.references for e in original]
    differ = [a.turns != b.turns for a, b in zip(asked, original, strict=True)]
    assert any(differ) == (task != "scienceqa")


def test_the_miniature_is_the_same_each_time(miniature, tmp_path):
    generate(tmp_path, seed=0)
    first = miniature / "downloads" / "coin-miniature"
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert path.read_bytes() == (first / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("benchmark", ["coin", "coin-diverse", "coin-10type", "coin-miniature"])
def test_tasks_read_only_what_they_download(benchmark, tmp_path):
    first, second = load(Benchmark, benchmark).orders.values()
    assert len(first) == len(second) == 8
    for name in first:
        task = load(Task, name)
        assert coin.splits(task.source, tmp_path) == ("train", "test")
        read = [*coin.files(task.source).values(), *task.source["pictures"].values()]
        assert {path.split("/")[0] for path in read} == set(task.downloads)
        for download in task.downloads:
            load(Download, download)


# Single records.


def jpeg(size=(40, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "JPEG")
    return buffer.getvalue()


SOURCE = {
    "kind": "words",
    "instructions": "instructions",
    "pictures": {"A": "a", "A/deep": "b/c"},
    "expected": {"train": 1, "test": 1},
}


def put(root: Path, split: str, *records) -> None:
    for path in ("a/1.jpg", "a/2.jpg.jpg", "b/c/3.jpg"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg())
    (root / "instructions").mkdir(exist_ok=True)
    (root / f"instructions/{split}.json").write_text(json.dumps(records))


def said(*texts, sides=("human", "gpt")):
    return [{"from": sides[n % 2], "value": text} for n, text in enumerate(texts)]


def train(root, record, **source):
    put(root, "train", record)
    [found] = coin.read(SOURCE | source, "train", root)
    return found


def test_qwens_schema(tmp_path):
    sides = ("user", "assistant")
    asked = "Picture 1: <img>./cl_dataset/A/1.jpg</img>\nIs it red?\nBriefly."
    record = {"id": 1, "conversations": said(asked, "Yes", "Sure?", "No", sides=sides)}
    expected = Example(
        "1", jpeg(), (Turn("Is it red?\nBriefly.", "Yes"), Turn("Sure?", "No")), ("No",),
        image_size=(40, 20),
    )  # fmt: skip
    assert train(tmp_path, record) == expected
    plain = asked.removeprefix("Picture 1: ").replace("./", "")
    record["conversations"][0]["value"] = plain
    assert train(tmp_path, record) == expected
    assert train(tmp_path, record | {"image": "A/1.jpg"}) == expected


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("./A/1.jpg", "a/1.jpg"),
        ("A/1.jpg", "a/1.jpg"),
        ("./cl_dataset/A/1.jpg", "a/1.jpg"),
        ("A/1.jpg.jpg", "a/1.jpg"),
        ("A/2.jpg.jpg", "a/2.jpg.jpg"),
        ("A/deep/3.jpg", "b/c/3.jpg"),
        ("A/2.jpg", r"there is no picture 'A/2\.jpg'"),
        ("A/1.jpg.png", "there is no picture"),
        ("B/1.jpg", r"in none of the folders A/deep, A$"),
        ("A/../../secret.jpg", "not below the data set"),
        ("/etc/passwd", "not below the data set"),
        ("A", "cannot be read"),
        ("A/" + "n" * 999, "cannot be read"),
    ],
)
def test_where_pictures_are(tmp_path, name, found):
    record = {"id": "1", "image": name, "conversations": said("<image>\nQ", "A")}
    (tmp_path / "a").mkdir()
    result = train(tmp_path, record)
    if isinstance(result, Example):
        assert result.image == (tmp_path / found).read_bytes()
        assert result.turns == (Turn("Q", "A"),)
    else:
        assert re.search(found, result.reason)


GOOD = {"id": "1", "image": "A/1.jpg", "conversations": said("<image>\nQ", "[0, .25, 0.5, 0.75]")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "there is no 'id'"),
        ({"id": True}, "'id' is True"),
        ({"image": 3}, "picture '3' is in none of the folders"),
        ({"image": ["A/1.jpg"]}, "'image' is ['A/1.jpg']"),
        ({"conversations": []}, "do not alternate"),
        ({"conversations": "Q"}, "'conversations' is no list but str"),
        ({"conversations": [None]}, "the record is no object but NoneType"),
        ({"conversations": said("Q")}, "do not alternate"),
        ({"conversations": said("Q", "A")[::-1]}, "do not alternate"),
        ({"conversations": said("Q", "")}, "there is no 'value'"),
        ({"conversations": said("<image>", "A")}, "the question is empty"),
        ({"conversations": said("Q", "\ud800")}, "half a surrogate pair"),
        ({"image": None}, "the text has a picture, and the record names none"),
    ],
)
def test_why_a_training_record_is_none(tmp_path, change, reason):
    assert isinstance(train(tmp_path, GOOD), Example)
    found = train(tmp_path, GOOD | change)
    assert found.file == str(tmp_path / "instructions/train.json")
    assert found.line == 1
    assert reason in found.reason


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ("[0, .25, 0.5, 0.75]", None),
        ("0.1,0.2, 0.3 ,1e0", None),
        ("[0.1, 0.2, 0.3]", "not four numbers"),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", "not four numbers"),
        ("left", "not four numbers"),
        ("[nan, 0, 1, 1]", "not four numbers"),
        ("[10, 20, 30, 40]", "not relative"),
        ("[0.5, 0.2, 0.3, 0.4]", "no area"),
    ],
)
def test_boxes(tmp_path, box, reason):
    record = GOOD | {"conversations": said("<image>\nWhere?", box)}
    found = train(tmp_path, record, kind="grounding")
    assert isinstance(found, Example) if reason is None else reason in found.reason
    test = {"question_id": 7, "image": "A/1.jpg", "text": "Where?", "size": [40, 20]}
    put(tmp_path, "test", test | {"answer_bbox": box})
    [found] = coin.read(SOURCE | {"kind": "grounding"}, "test", tmp_path)
    if reason is None:
        assert found.references == (box,)
        assert found.turns[0].answer == box
    else:
        assert reason in found.reason


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((40, 20), (4, -2, 20, 18)),  # padded above and below by 10
        ((20, 40), (-6, 8, 10, 28)),
        ((40, 40), (4, 8, 20, 28)),
    ],
)
def test_the_square_is_taken_back(size, box):
    assert coin.pixels((0.1, 0.2, 0.5, 0.7), size) == pytest.approx(box)


def test_a_size_that_is_not_the_pictures(tmp_path):
    put(tmp_path, "test", {
        "question_id": 7, "image": "A/1.jpg", "text": "Where?", "size": [20, 40],
        "answer_bbox": "[0, 0, 1, 1]",
    })  # fmt: skip
    [found] = coin.read(SOURCE | {"kind": "grounding"}, "test", tmp_path)
    assert found.reason == "size is [20, 40], the picture has (40, 20)"


OFFICIAL = {
    "scienceqa": {
        "problems": {"1": {"choices": ["x", "y"], "answer": 1}},
        "splits": {"test": ["1", "9"]},
    },
    "textvqa": {"answers": {"data": [{"question_id": 1, "answers": list("aaaaaaabbb")}]}},
    "gqa": {"questions": {"1": {"answer": "left"}}},
}


def official(root, kind, **change):
    """Write the official files of a kind; return its source."""
    for role, content in (OFFICIAL[kind] | change).items():
        (root / f"{role}.json").write_text(json.dumps(content))
    return SOURCE | {"kind": kind, "official": {r: f"{r}.json" for r in OFFICIAL[kind]}}


@pytest.mark.parametrize(
    ("kind", "identity", "answer", "expected"),
    [
        ("scienceqa", "1", "B", ("B",)),
        ("scienceqa", 1, "A", "the answer is 'A', ScienceQA's is 'B'"),
        ("scienceqa", "2", "B", "'2' is no id of ScienceQA's test split"),
        ("scienceqa", "9", "B", "'9' is no id of ScienceQA's problems"),
        ("textvqa", 1, "a", tuple("aaaaaaabbb")),
        ("textvqa", 2, "a", "'2' is no question of TextVQA's validation file"),
        ("gqa", "1", "Left", ("left",)),
        ("gqa", "2", "left", "'2' is no question of GQA's testdev_balanced"),
        ("words", 1, 12, ("12",)),
        ("words", "1", "", "there is no 'answer'"),
    ],
)
def test_what_the_official_files_say(tmp_path, kind, identity, answer, expected):
    source = official(tmp_path, kind) if kind in OFFICIAL else SOURCE
    put(tmp_path, "test", {"question_id": identity, "text": "Q", "answer": answer})
    [found] = coin.read(source, "test", tmp_path)
    if isinstance(found, Rejected):
        assert found.reason == expected
    else:
        assert found.references == expected


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("scienceqa", {"problems": {"1": {"choices": ["x"], "answer": 1}}}, "problems.json: not"),
        ("textvqa", {"answers": {"data": [{"question_id": 1, "answers": ["a"]}]}}, "1 answers"),
        ("gqa", {"questions": []}, "questions.json: not the publisher's file"),
    ],
)
def test_a_wrong_official_file_is_refused(tmp_path, kind, change, message):
    source = official(tmp_path, kind, **change)
    put(tmp_path, "test", {"question_id": "1", "text": "Q", "answer": "A"})
    with pytest.raises(ValueError, match=message):
        list(coin.read(source, "test", tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "speech"}, "source: kind: Input should be"),
        ({"folder": "x"}, "source: folder: Extra inputs"),
        ({"official": {"answers": "x"}}, "of kind 'words' names nothing; found answers"),
        ({"kind": "gqa"}, "of kind 'gqa' names questions; found nothing"),
    ],
)
def test_a_wrong_source_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        coin.splits(SOURCE | change, tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["human", "gpt", "<image>", "A/1.jpg", "<img>A/1.jpg</img>", "[0, 0, 1, 1]"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["from", "value", "image", "id"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = ["id", "question_id", "image", "conversations", "text", "answer", "answer_bbox", "size"]
TEST = {"question_id": 1, "image": "A/1.jpg", "text": "Q", "answer": "A"}
TEST |= {"answer_bbox": "[0, 0, 1, 1]", "size": [40, 20]}


@st.composite
def mutated(draw, record):
    """A record with some keys gone and others changed, or something else altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    record = {k: v for k, v in record.items() if draw(st.integers(0, 7))}
    return record | draw(st.dictionaries(st.sampled_from(KEYS), values, max_size=2))


@given(st.data(), st.sampled_from(["train", "test"]), st.sampled_from(sorted(coin.KINDS)))
def test_every_record_is_an_example_or_has_a_reason(data, split, kind):
    records = data.draw(st.lists(mutated(GOOD if split == "train" else TEST), max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = official(root, kind) if kind in OFFICIAL else SOURCE | {"kind": kind}
        put(root, split, *records)
        found = list(coin.read(source, split, root))
    assert len(found) == len(records)
    for number, one in enumerate(found, start=1):
        assert isinstance(one, Example) or (one.line == number and one.reason)


# The array that is read element by element.


@given(st.lists(values, max_size=8), st.integers(1, 40), st.sampled_from([None, 1]))
def test_an_array_is_read_in_any_chunks(content, chunk, indent):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "CHUNK", chunk)
        path = Path(folder, "a.json")
        path.write_text(text := json.dumps(content, indent=indent, ensure_ascii=chunk % 2 == 0))
        # NaN is not equal to itself, its text is.
        assert repr(list(elements(path))) == repr(json.loads(text))


@given(st.lists(values, min_size=1, max_size=5), st.data())
def test_an_array_that_is_cut_is_refused(content, data):
    text = json.dumps(content)
    cut = data.draw(st.integers(0, len(text) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.json")
        path.write_text(text[:cut])
        with pytest.raises(ValueError, match=r"a\.json: damaged or truncated at element \d+: "):
            list(elements(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', r"element 1: expected '\[': .* \(character 1\)"),
        ("[1, 2 3]", r"element 2: expected ',' or '\]' \(character 7\)"),
        ("[1, 2] 3", r"element 2: more text after the array's end \(character 7\)"),
        ('[{"a": 1}, {"a": ]', r"element 2: Expecting value \(character 17\)"),
        ("[1,]", r"element 2: Expecting value \(character 3\)"),
        ("[" * 100_000, "element 1: "),
        ("[" + "1" * 5000 + "]", "element 1: Exceeds the limit"),
    ],
)
def test_where_an_array_breaks(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: damaged or truncated at {message}"):
        list(elements(tmp_path / "a.json"))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"a\.json: damaged or truncated .*utf-8"):
        list(elements(tmp_path / "a.json"))
    with pytest.raises(ValueError, match=r"b\.json: file is missing"):
        list(elements(tmp_path / "b.json"))


def test_memory_does_not_grow_with_the_array(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", 100)
    longest = 0
    more = json_array._Text.more

    def watched(text):
        nonlocal longest
        found = more(text)
        longest = max(longest, len(text.rest))
        return found

    monkeypatch.setattr(json_array._Text, "more", watched)
    (tmp_path / "a.json").write_text(json.dumps([{"n": n} for n in range(5000)], indent=4))
    assert sum(1 for _ in elements(tmp_path / "a.json")) == 5000
    assert 100 <= longest < 400


def test_an_element_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", 100)
    monkeypatch.setattr(json_array, "LONGEST", 1000)
    (tmp_path / "a.json").write_text('["' + "a" * 5000 + '"]')
    with pytest.raises(ValueError, match="element 1: Unterminated string"):
        list(elements(tmp_path / "a.json"))
