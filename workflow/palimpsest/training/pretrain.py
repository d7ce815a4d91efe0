"""The demo's base model, from nothing: first its eyes, then its language about pictures.

``pretrain`` writes a complete base directory. The one that is shipped was made by
``palimpsest pretrain workflow/weights/demo-llava`` with the settings in its ``recipe.json``.
"""

import csv
import hashlib
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import transformers
from torch.nn import functional as F

from palimpsest.files import sha256, whole_directory, write_json
from palimpsest.models.demo import build, build_image_processor, build_tokenizer, chat
from palimpsest.training.pretrain_data import SKILLS, Sample, draw_sample, vocabulary_texts
from palimpsest.training.pretrain_vision import VisionPhase, vision_batch

STEPS = 14_000  # of both phases together, when neither steps nor minutes are given
PROCESSES = 2
BATCH = 32  # samples a process and step
VISION_SHARE = 0.14  # of the time or steps
PEAK_RATE = 1e-3
WARM_UP, DECAY = 0.01, 0.5  # shares of a phase: the rate rises, stays, and falls to nothing
BUCKET = 8  # batches drawn together, to be grouped by length
SCORE_EVERY_S = 240
HELD_OUT_SEED = 990_001  # training draws from other seeds
HELD_OUT_EACH = 32


@dataclass
class Budget:
    """How far a run is: by steps, or by the clock (then the mean of its processes counts)."""

    steps: int | None
    seconds: float | None
    start: float = field(default_factory=time.monotonic)

    def progress(self, step: int) -> float:
        """Return the share of the run that is over at a step, from 0 to 1."""
        if self.steps is not None:
            return step / self.steps
        return (time.monotonic() - self.start) / self.seconds


def rate(progress: float) -> float:
    """The learning rate's share of its peak at a progress of 0 to 1."""
    rising = min(1.0, (progress + 1e-4) / WARM_UP)
    falling = min(1.0, (1 - progress) / DECAY)
    return max(rising * falling, 0.01)


def encode_batch(tokenizer, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Right-padded ids and labels (-100 where nothing is supervised), and pixels of -1 .. 1."""
    prompts = tokenizer([chat(s.request) for s in samples], add_special_tokens=False)["input_ids"]
    answers = tokenizer([s.answer for s in samples], add_special_tokens=False)["input_ids"]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)) + 1
    ids_BL = torch.full((len(samples), length), tokenizer.pad_token_id)
    labels_BL = torch.full((len(samples), length), -100)
    for k, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        answer = [*answer, tokenizer.eos_token_id]
        end = len(prompt) + len(answer)
        ids_BL[k, :end] = torch.tensor(prompt + answer)
        labels_BL[k, len(prompt) : end] = torch.tensor(answer)
    return {"ids": ids_BL, "labels": labels_BL, "pixels": pixels(samples)}


def pixels(samples: list[Sample]) -> torch.Tensor:
    """The pictures as (B, 3, 64, 64), scaled as the image processor does."""
    stacked = np.stack([np.asarray(s.picture) for s in samples])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def language_batches(tokenizer, random: np.random.Generator):
    """Batches without end; samples of like length stand together, so that little is padded."""
    while True:
        samples = [draw_sample(random) for _ in range(BATCH * BUCKET)]
        samples.sort(key=lambda s: len(s.request.split()) + len(s.answer.split()) + len(s.answer))
        for k in random.permutation(BUCKET):
            yield encode_batch(tokenizer, samples[k * BATCH : (k + 1) * BATCH])


def language_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of the answers; the head is applied only where a label is supervised."""
    hidden_BLD = model.model(
        input_ids=batch["ids"], pixel_values=batch["pixels"], use_cache=False
    ).last_hidden_state
    targets_BL = batch["labels"][:, 1:]
    supervised = targets_BL != -100
    return F.cross_entropy(model.lm_head(hidden_BLD[:, :-1][supervised]), targets_BL[supervised])


def _descend(parameters, optimizer, progress: float, phase_progress: float) -> float:
    """One step with the mean gradient of all processes; returns the mean progress of all."""
    used = [p for p in parameters if p.grad is not None]
    if dist.is_initialized():
        flat = torch.cat([p.grad.flatten() for p in used] + [torch.tensor([progress])])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        progress, at = flat[-1].item(), 0
        for p in used:
            p.grad.copy_(flat[at : at + p.numel()].view_as(p))
            at += p.numel()
    torch.nn.utils.clip_grad_norm_(used, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = PEAK_RATE * rate(phase_progress)
    optimizer.step()
    optimizer.zero_grad()
    return progress


def _optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )


@torch.inference_mode()
def skill_scores(model, tokenizer, each: int = HELD_OUT_EACH) -> dict[str, float]:
    """The percentage of right answers of each skill, on held-out samples, decoded greedily."""
    model.eval()
    random = np.random.default_rng(HELD_OUT_SEED)
    scores = {}
    for skill in SKILLS:
        samples = [skill(random) for _ in range(each)]
        prompts = tokenizer(
            [chat(s.request) for s in samples], add_special_tokens=False, padding=True,
            padding_side="left", return_tensors="pt",
        )  # fmt: skip
        made = model.generate(
            input_ids=prompts["input_ids"], attention_mask=prompts["attention_mask"],
            pixel_values=pixels(samples), max_new_tokens=32, do_sample=False,
        )  # fmt: skip
        said = tokenizer.batch_decode(
            made[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
        )
        wanted = [tokenizer.decode(tokenizer(s.answer)["input_ids"]) for s in samples]
        right = [a.strip() == b for a, b in zip(said, wanted, strict=True)]
        scores[skill.__name__] = round(100 * sum(right) / each, 2)
    model.train()
    return scores


def data_fingerprint(seed: int, number: int = 200) -> str:
    """A hash of the first training samples, which changes when the pictures or words do."""
    random, digest = np.random.default_rng([seed, 0]), hashlib.sha256()
    for sample in (draw_sample(random) for _ in range(number)):
        digest.update(sample.picture.tobytes() + sample.request.encode() + sample.answer.encode())
    return digest.hexdigest()


def save_base(out: Path, model, tokenizer, recipe: dict, losses: list[tuple]) -> None:
    """Write the whole base directory, replacing what is there but for its README."""
    with whole_directory(out) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        build_image_processor().save_pretrained(fresh)
        write_json(fresh / "recipe.json", {**recipe, "sha256": sha256(fresh / "model.safetensors")})
        with (fresh / "loss.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("phase", "step", "samples", "seconds", "loss"), *losses])
        if (out / "README.md").exists():
            shutil.copy2(out / "README.md", fresh)


class _Run:
    """One process of a pretraining run: the model, its budget, and what rank 0 writes of it."""

    def __init__(self, out: Path, seed: int, budget: Budget, rank: int, world: int) -> None:
        self.out, self.seed, self.budget, self.rank, self.world = out, seed, budget, rank, world
        self.tokenizer = build_tokenizer(vocabulary_texts())
        self.model = build(self.tokenizer, seed)
        # In bf16 on a CPU, eager attention's backward is several times faster than the fused one.
        self.model.set_attn_implementation("eager")
        self.losses: list[tuple] = []
        self.step = 0
        self.scored = time.monotonic()

    def phase(self, name: str, loss_of, parameters, start: float, end: float) -> None:
        """Train while the run's progress is below ``end``; ``loss_of()`` draws a batch's loss."""
        optimizer, recent = _optimizer(parameters), []
        progress = start
        while progress < end:
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of()
            loss.backward()
            done = self.budget.progress(self.step + 1)
            progress = _descend(parameters, optimizer, done, (progress - start) / (end - start))
            self.step += 1
            recent.append(loss.item())
            if self.rank == 0 and (self.step % 100 == 0 or progress >= end):
                self._log(name, progress, float(np.mean(recent)))
                recent.clear()

    def _log(self, name: str, progress: float, loss: float) -> None:
        seconds = time.monotonic() - self.budget.start
        samples = self.step * BATCH * self.world
        self.losses.append((name, self.step, samples, round(seconds, 1), round(loss, 4)))
        print(
            f"{name} step {self.step} {100 * progress:.1f} % loss {loss:.3f}"
            f" {samples / seconds:.0f} samples/s {seconds:.0f} s",
            flush=True,
        )
        if name == "language" and time.monotonic() - self.scored > SCORE_EVERY_S:
            self.save()
            self.scored = time.monotonic()

    def save(self) -> None:
        """Score the base as it is now, and write it with its recipe and losses."""
        scores = skill_scores(self.model, self.tokenizer)
        recipe = {
            "seed": self.seed,
            "steps": self.step,
            "samples": self.step * BATCH * self.world,
            "processes": self.world,
            "seconds": round(time.monotonic() - self.budget.start),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "data_fingerprint": data_fingerprint(self.seed),
            "held_out": {"seed": HELD_OUT_SEED, "each": HELD_OUT_EACH, "scores": scores},
            "held_out_mean": round(float(np.mean(list(scores.values()))), 2),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "numpy": np.__version__,
            },
        }
        save_base(self.out, self.model, self.tokenizer, recipe, self.losses)
        print("held out", recipe["held_out_mean"], scores, flush=True)

    def train(self) -> None:
        """Teach the eyes to see, and then the whole to answer; save the base now and then."""
        random = np.random.default_rng([self.seed, self.rank + 1])
        eyes = VisionPhase(self.model, self.tokenizer)
        right = []

        def vision_loss():
            loss, share = eyes(*vision_batch(random, BATCH))
            right.append(share)
            return loss

        self.phase("vision", vision_loss, list(eyes.parameters()), 0.0, VISION_SHARE)
        if self.rank == 0:
            print(f"patches named rightly: {100 * np.mean(right[-50:]):.1f} %", flush=True)
            self.save()
        # What the tower sees must stay while the decoder, still random, learns to read it.
        self.model.model.vision_tower.requires_grad_(False)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        batches = language_batches(self.tokenizer, random)
        self.phase(
            "language",
            lambda: language_loss(self.model, next(batches)),
            parameters,
            VISION_SHARE,
            1.0,
        )
        if self.rank == 0:
            self.save()


def run(out: Path, seed: int, budget: Budget, rank: int = 0, world: int = 1) -> None:
    """Pretrain in this process, one of ``world`` that share their gradients."""
    torch.set_num_threads(1)
    budget.start = time.monotonic()
    _Run(out, seed, budget, rank, world).train()


def _work(rank: int, out: Path, seed: int, budget: Budget, rendezvous: str) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(minutes=10),
    )
    run(out, seed, budget, rank, PROCESSES)
    dist.barrier()
    dist.destroy_process_group()


def pretrain(out: Path, seed: int, minutes: float | None = None, steps: int | None = None) -> None:
    """Build the base model from nothing and write it to ``out``, replacing what is there.

    ``minutes`` bounds the run by the clock, ``steps`` by steps of 64 samples: give one or neither.
    """
    if minutes is not None and steps is not None:
        raise ValueError("pretrain: give --minutes or --steps, not both")
    for name, value in (("minutes", minutes), ("steps", steps)):
        if value is not None and value <= 0:
            raise ValueError(f"pretrain: --{name} must be positive, found {value}")
    if minutes is not None:
        budget = Budget(steps=None, seconds=60 * minutes)
    else:
        budget = Budget(steps=steps or STEPS, seconds=None)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(out), seed, budget, f"{folder}/rendezvous")
        multiprocessing.spawn(_work, arguments, nprocs=PROCESSES)
