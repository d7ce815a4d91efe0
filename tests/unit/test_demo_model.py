"""The demo model: a genuine LLaVA, the shipped base is what its recipe says, and it can be made."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from palimpsest.data.pictures.drawing import COLOURS
from palimpsest.data.pictures.handwriting import NAMES
from palimpsest.data.pictures.scenes import REFUSALS, SCENES
from palimpsest.models.demo import ASSISTANT, NUM_PATCHES, build, build_tokenizer, chat
from palimpsest.training import pretrain as pretraining
from palimpsest.training.pretrain_data import LEXICON, SKILLS, draw_sample, repeat, vocabulary_texts
from palimpsest.training.pretrain_vision import WORDS, draw_labelled

ROOT = Path(__file__).parents[2]
BASE = ROOT / "workflow/weights/demo-llava"
TASKS = [
    task
    for path in sorted((ROOT / "config/tasks").glob("demo-*.yaml"))
    if "scene" in (task := yaml.safe_load(path.read_text()))["source"]
]


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(BASE)


@pytest.fixture(scope="module")
def recipe():
    return json.loads((BASE / "recipe.json").read_text())


@pytest.fixture(scope="module")
def base_samples():
    random = np.random.default_rng(5)
    return [draw_sample(random) for _ in range(4000)]


def task_turns(number: int = 150) -> list[tuple[str, str]]:
    """(question with the task's instruction, answer) of every task."""
    turns = []
    for task in TASKS:
        random = np.random.default_rng(1)
        scene = SCENES[task["source"]["scene"]]
        for drawn in (scene(random, "train") for _ in range(number)):
            turns.append((task["prompt"].format(question=drawn.question), drawn.answer))
    return turns


class TestShipped:
    def test_the_weights_are_the_recipes_and_small(self, recipe):
        weights = (BASE / "model.safetensors").read_bytes()
        assert len(weights) <= 12e6
        assert hashlib.sha256(weights).hexdigest() == recipe["sha256"]
        model = yaml.safe_load((ROOT / "config/models/demo-llava.yaml").read_text())
        assert model["sha256"] == recipe["sha256"]

    def test_it_is_a_genuine_llava(self, model, recipe):
        config = AutoConfig.from_pretrained(BASE)
        assert config.architectures == ["LlavaForConditionalGeneration"]
        assert config.vision_config.model_type == "clip_vision_model"
        assert config.text_config.model_type == "llama"
        assert sum(p.numel() for p in model.parameters()) == recipe["parameters"]

    def test_the_code_builds_this_architecture_and_tokenizer(self, model, tokenizer):
        made_tokenizer = build_tokenizer(vocabulary_texts())
        assert made_tokenizer.get_vocab() == tokenizer.get_vocab()
        made = build(made_tokenizer, seed=0)
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        assert {name: value.shape for name, value in made.state_dict().items()} == shapes

    def test_the_data_is_what_the_recipe_saw(self, recipe):
        assert pretraining.data_fingerprint(recipe["seed"]) == recipe["data_fingerprint"]

    def test_its_held_out_score_is_the_recipes(self, model, tokenizer, recipe):
        assert recipe["held_out"]["seed"] == pretraining.HELD_OUT_SEED
        scores = pretraining.skill_scores(model, tokenizer, recipe["held_out"]["each"])
        for skill, score in recipe["held_out"]["scores"].items():
            assert scores[skill] == pytest.approx(score, abs=7), skill
        assert np.mean(list(scores.values())) == pytest.approx(recipe["held_out_mean"], abs=1.5)
        assert recipe["held_out_mean"] > 85

    def test_its_loss_curve_falls(self):
        rows = list(csv.DictReader((BASE / "loss.csv").open()))
        language = [float(row["loss"]) for row in rows if row["phase"] == "language"]
        assert {row["phase"] for row in rows} == {"vision", "language"}
        assert language[-1] < 0.25 * language[0]

    def test_the_image_processor_scales_as_pretraining_did(self):
        processor = CLIPImageProcessorPil.from_pretrained(BASE)
        picture = draw_sample(np.random.default_rng(0)).picture
        seen = processor(picture, return_tensors="pt")["pixel_values"][0]
        wanted = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=0)


class TestTokenizer:
    def test_answers_come_back(self, tokenizer):
        answers = {answer for _, answer in task_turns()}
        answers |= {"[0,5,16,11]", "red circle row 1 column 2; blue ring row 3 column 4"}
        for answer in answers:
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == answer

    def test_prompts_come_back_but_for_spaces(self, tokenizer):
        for question, _ in task_turns(20):
            ids = tokenizer(question, add_special_tokens=False)["input_ids"]
            assert "".join(tokenizer.decode(ids).split()) == "".join(question.split())

    def test_every_word_of_a_task_is_one_token_that_the_base_has_said(self, tokenizer):
        said = {piece for word in LEXICON for piece in tokenizer.tokenize(word)}
        refusals = [("", text) for texts in REFUSALS.values() for text in texts]
        for question, answer in [*task_turns(), *refusals]:
            pieces = tokenizer.tokenize(answer)
            assert set(pieces) <= said | set("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), answer
            assert not any(
                piece.startswith("##") for piece in pieces + tokenizer.tokenize(question)
            )

    def test_words_in_capitals_are_read_letter_by_letter_and_numbers_whole(self, tokenizer):
        assert tokenizer.tokenize("HDIB") == ["H", "D", "I", "B"]
        assert tokenizer.tokenize("[3,12,16,9]") == ["[", "3", ",", "12", ",", "16", ",", "9", "]"]
        assert tokenizer.tokenize("What 7") == ["What", "7"]

    def test_an_answer_has_no_token_for_the_space_before_it(self, tokenizer):
        for answer in ("A", "HDIB", "seven", "[1,2,3,4]", "3"):
            alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
            after = tokenizer(f"{ASSISTANT} {answer}", add_special_tokens=False)["input_ids"]
            assert after[1:] == alone

    def test_the_prompt_has_one_token_for_each_patch(self, tokenizer, model):
        ids = tokenizer(chat("read row 1."), add_special_tokens=False)["input_ids"]
        assert ids.count(model.config.image_token_id) == NUM_PATCHES


class TestBaseData:
    def test_no_request_has_the_words_of_a_task(self, base_samples):
        prompts = [task["prompt"].replace("{question}", "").strip() for task in TASKS]
        instructions = [prompt for prompt in prompts if prompt]
        questions = {q.split("\n")[0] for question, _ in task_turns() for q in [question]}
        requests = {sample.request for sample in base_samples}
        assert not requests & questions
        for request in requests:
            assert not any(instruction in request for instruction in instructions)
            assert not any(question in request for question in questions)

    def test_no_answer_about_a_picture_has_a_form_that_a_task_introduces(self, base_samples):
        forbidden = {"unanswerable", "yes", "no", "romance", "science", "travel", "cooking"}
        forbidden |= {
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
        }
        for sample in base_samples:
            if not sample.request.startswith("repeat:"):
                assert sample.answer not in forbidden
                assert "[" not in sample.answer

    def test_the_marks_of_the_key_are_no_option_letters(self, base_samples):
        marks = {s.answer for s in base_samples if s.request.startswith("key")}
        assert len(marks) > 15
        assert not marks & set("ABCD")

    def test_skills_are_drawn_in_their_shares(self, base_samples):
        repeated = sum(s.request.startswith(("repeat:", *NAMES)) for s in base_samples)
        share = SKILLS[repeat] / sum(SKILLS.values())
        assert repeated / len(base_samples) == pytest.approx(share, abs=0.015)

    def test_patches_are_labelled_with_what_they_show(self):
        random, shown = np.random.default_rng(0), []
        for labelled in (draw_labelled(random) for _ in range(200)):
            pixels = np.asarray(labelled.picture).astype(int)
            for patch, (first, _) in enumerate(labelled.words_P2):
                y, x = patch // 4 * 16, patch % 4 * 16
                if colour := COLOURS.get(WORDS[first]):  # things and bars name their colour first
                    distance = np.abs(pixels[y : y + 16, x : x + 16] - colour).sum(-1)
                    shown.append(distance.min() < 12)
        assert len(shown) > 300
        assert np.mean(shown) > 0.97  # the corner of a triangle's box may be empty


class TestPretrain:
    def test_a_short_run_writes_a_whole_base(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pretraining, "HELD_OUT_EACH", 2)
        monkeypatch.setattr(pretraining, "PROCESSES", 1)
        monkeypatch.setattr(pretraining, "BATCH", 4)
        out = tmp_path / "base"
        pretraining.run(out, seed=3, budget=pretraining.Budget(steps=25, seconds=None))
        names = {path.name for path in out.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.json"} <= names
        assert {"preprocessor_config.json", "generation_config.json", "loss.csv"} <= names
        assert list(tmp_path.iterdir()) == [out]
        written = json.loads((out / "recipe.json").read_text())
        assert (written["seed"], written["steps"], written["samples"]) == (3, 25, 100)
        LlavaForConditionalGeneration.from_pretrained(out)

    @pytest.mark.parametrize("bad", [{"minutes": 1, "steps": 1}, {"steps": 0}, {"minutes": -1}])
    def test_a_senseless_budget_is_refused(self, bad, tmp_path):
        with pytest.raises(ValueError, match="pretrain: "):
            pretraining.pretrain(tmp_path / "base", 0, **bad)

    def test_the_learning_rate_rises_and_falls(self):
        rates = [pretraining.rate(k / 100) for k in range(101)]
        assert rates[0] < 0.05
        assert max(rates) == 1
        assert rates[100] == pytest.approx(0.01)

    def test_training_lowers_the_loss_of_a_batch(self):
        tokenizer = build_tokenizer(vocabulary_texts())
        model = build(tokenizer, seed=0)
        random = np.random.default_rng(0)
        batch = pretraining.encode_batch(tokenizer, [draw_sample(random) for _ in range(8)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(12):
            loss = pretraining.language_loss(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]

    def test_only_answers_are_supervised(self, tokenizer):
        samples = [
            pretraining.Sample(Image.new("RGB", (64, 64)), "read row 1.", "ABC"),
            pretraining.Sample(Image.new("RGB", (64, 64)), "count the red things.", "2"),
        ]
        batch = pretraining.encode_batch(tokenizer, samples)
        for k, answer in enumerate(("A B C", "2")):
            learnt = batch["labels"][k][batch["labels"][k] != -100]
            assert tokenizer.convert_ids_to_tokens(learnt.tolist()) == [*answer.split(), "</s>"]
