"""Steps of a stage, against those of `transformers.Trainer` and of the loop that the field uses.

All ways take the same steps of the demo model: the same weights, adapters, examples in the same
batches, AdamW and schedule, in fp32 on one core; they read and encode the examples alike, and the
largest difference of a step's loss, as a share of it, is told. The Trainer has PEFT's LoRA, batches
of one length, no gradient checkpointing, fused AdamW, and neither logs nor saves. The loop of the
field is the Trainer with what is common in released code, if not all of it everywhere: every
example padded to one fixed length, activations computed anew in the backward pass and, with
MoELoRA, one expert after another as in CoIN's fork of PEFT.

On equal batches both must do the same products with the same weights, which are most of a step;
what is ours to save is logits where nothing is learnt, and passes over memory. So the ratio to the
Trainer is small with the demo's 439 words, and large with 32,000 (Llama's), of random embeddings.
That overstates it for a large model: there, the output layer is a few hundredths of all weights,
and what is saved is the memory of the logits. No ratio here says anything of a GPU.

Start-up is a whole stage of one step in a process of its own: imports, model, step and results.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from threading import Semaphore, Thread
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import bench
from bench import REPEATS, Claim, Cost
from palimpsest.config import Method, Model, load
from palimpsest.lineage import Stage
from palimpsest.methods import adapter
from palimpsest.methods.moelora import MoELoRALinear
from palimpsest.models import load as load_model
from palimpsest.models.lmm import IGNORE, LMM, Encoded
from palimpsest.tasks import Examples
from palimpsest.training import engine, loop, order
from palimpsest.training.examples import EMPTY, Curriculum

REPOSITORY = Path(__file__).parents[1]
TASK = "demo-reading"
STEPS = 3  # a turn
TURNS = REPEATS + 1  # one to warm up
BATCH = 32
FIXED = 64  # tokens; the examples of this task have about 40
LLAMA_WORDS = 32_000
EXPERTS = {"name": "moelora", "rank": 16, "alpha": 32, "experts": 8}

Batch = dict[str, Tensor]


def claims() -> list[Claim]:
    """Compare the ways in a workspace of their own."""
    with tempfile.TemporaryDirectory() as directory, chdir(directory):
        _workspace()
        begun, _ = bench.side_by_side({"a stage of one step": _one_step})
        ways, wide_ways = _ways(_Stage())
        costs, _ = bench.side_by_side(ways)
        wide_costs, _ = bench.side_by_side(wide_ways)

    def against(what: str, ours: str, theirs: str, goal: str = "", but: str = "") -> Claim:
        told = _told(costs[ours], costs[theirs], ways[ours], ways[theirs])
        return bench.ratio(what, costs[ours], costs[theirs], goal=goal, beside=told + but)

    trainer = "a LoRA stage, against `transformers.Trainer` on the same batches"
    products = "; most of a step are products with the same weights, which both must do"
    wide = _told(*wide_costs.values(), *wide_ways.values())
    share = "; more than a large model gains, of which the output layer is a small share"
    return [
        against(trainer, "LoRA", "LoRA, Trainer", "≥ 1.5", products),
        bench.ratio(
            f"the same with {LLAMA_WORDS:,} words, as Llama has",
            *wide_costs.values(),
            beside=wide + share,
        ),
        against("a LoRA stage, against the loop of the field", "LoRA", "LoRA, the field"),
        against("a MoELoRA stage, against the loop of the field", "MoELoRA", "MoELoRA, the field"),
        bench.ratio(
            "a step of MoELoRA with 8 experts, over one of LoRA of the same rank",
            costs["LoRA"],
            costs["MoELoRA"],
            goal="≤ 1.3",
        ),
        bench.seconds("start-up: a stage of one step", begun["a stage of one step"], goal="≤ 8"),
    ]


def _ways(stage: _Stage) -> tuple[dict[str, _Ours | _Theirs], dict[str, _Ours | _Theirs]]:
    """Return what takes the steps of a stage, and ours and the Trainer with more words."""
    # Trainers first: once this process has joined a world of its own, they would use DDP.
    theirs = {
        "LoRA, Trainer": _Theirs(stage, "lora"),
        "LoRA, the field": _Theirs(stage, "lora", as_the_field=True),
        "MoELoRA, the field": _Theirs(stage, "experts", as_the_field=True),
    }
    wide = _Theirs(stage, "lora", words=LLAMA_WORDS)
    world = engine.join(stage.model, BATCH)
    ours = {"LoRA": _Ours(stage, world, "lora"), "MoELoRA": _Ours(stage, world, "experts")}
    return ours | theirs, {"ours": _Ours(stage, world, "lora", words=LLAMA_WORDS), "Trainer": wide}


class _Stage:
    """What all ways share: the examples of a stage, in the batches in which a stage has them."""

    def __init__(self) -> None:
        self.stage = Stage.parse(f"demo/demo-llava/lora/seed-0/{TASK}")
        self.model, method = load(Model, "demo-llava"), load(Method, "lora")
        self.training, self.seed = method.training, self.stage.seed
        new = Examples(Path("results"), self.stage.benchmark, (TASK,), "train")
        lineage = self.stage.lineage
        self.curriculum = Curriculum(new, EMPTY, method, self.seed, str(lineage))
        lengths = self.curriculum.characters(new.characters())
        self.batches = order.batches(lengths, BATCH, self.seed, lineage)

    def lmm(self, words: int | None) -> LMM:
        """Return the demo model; with some words more, of random embeddings, if asked."""
        lmm = load_model(self.model)
        torch.manual_seed(self.seed)
        if words:
            lmm.module.resize_token_embeddings(words, mean_resizing=False)
        return lmm

    def loader(self, lmm: LMM, collate: Callable[[list[Encoded]], Batch]) -> DataLoader:
        """Yield the batches as a stage does: each example is read and encoded when it is needed."""
        samples = _Encoded(self.curriculum, lmm)
        return DataLoader(samples, batch_sampler=self.batches, collate_fn=collate)


class _Encoded(Dataset):
    def __init__(self, curriculum: Curriculum, lmm: LMM) -> None:
        self.curriculum, self.lmm = curriculum, lmm

    def __len__(self) -> int:
        return len(self.curriculum)

    def __getitem__(self, position: int) -> Encoded:
        return self.lmm.encode(self.curriculum[position])


class _Ours:
    """Our loop, STEPS steps a turn."""

    def __init__(
        self, stage: _Stage, world: engine.World, method: str, words: int | None = None
    ) -> None:
        lmm, chosen = stage.lmm(words), load(Method, method)
        adapter.build(chosen.adapter).attach(lmm.module, stage.model.adapter_targets)
        factor = loop.schedule(stage.training, len(stage.batches))
        objective = loop.AnswerLoss(lmm.module)
        run = engine.start(objective, stage.model, chosen, world, factor)
        loader = iter(stage.loader(lmm, partial(lmm.collate, side="right")))
        noise, never = partial(order.step_seed, stage.seed), lambda: False
        num_steps = len(stage.batches)
        self.steps: Iterator[loop.Step] = loop.steps(run, loader, world, noise, never, 0, num_steps)
        self.losses: list[float] = []

    def __call__(self) -> None:
        self.losses += [step.loss for step in islice(self.steps, STEPS)]


class _Theirs(Trainer):
    """The Trainer, which runs in a thread of its own and waits after every turn of STEPS steps."""

    def __init__(
        self, stage: _Stage, method: str, words: int | None = None, as_the_field: bool = False
    ) -> None:
        lmm, settings, training = stage.lmm(words), load(Method, method).adapter, stage.training
        targets = stage.model.adapter_targets
        module = with_peft if settings.name == "lora" else with_a_loop
        module = module(lmm.module, settings, targets)
        self.losses: list[float] = []
        collate = partial(_padded, lmm) if as_the_field else partial(lmm.collate, side="right")
        self.batches = stage.loader(lmm, collate)
        self.turns = _Turns(self.train)
        optimiser = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad],
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=True,
        )
        factor = loop.schedule(training, len(stage.batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        super().__init__(
            model=module,
            args=TrainingArguments(
                output_dir="trainer",
                per_device_train_batch_size=BATCH,
                max_steps=len(stage.batches),
                max_grad_norm=training.gradient_clip,
                activation_checkpointing=as_the_field,
                activation_checkpointing_kwargs={"use_reentrant": False},
                use_cpu=True,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=self.batches.dataset,
            optimizers=(optimiser, schedule),
            callbacks=[self.turns],
        )

    def __call__(self) -> None:
        self.turns.take()

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches that ours gets."""
        return self.batches

    def compute_loss(self, *arguments: Any, **settings: Any) -> Tensor:
        """Note each step's loss."""
        loss = super().compute_loss(*arguments, **settings)
        self.losses.append(loss.item())
        return loss


class _Turns(TrainerCallback):
    """Lets a Trainer go on for a turn at a time."""

    def __init__(self, train: Callable[[], Any]) -> None:
        self.go, self.done = Semaphore(0), Semaphore(0)
        self.error: Exception | None = None
        self.thread = Thread(target=self._run, args=(train,), daemon=True)

    def take(self) -> None:
        """Take a turn; the thread starts with the first."""
        if self.thread.ident is None:
            self.thread.start()
        else:
            self.go.release()
        self.done.acquire()
        if self.error:
            raise self.error

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step % STEPS == 0:
            self.done.release()
            self.go.acquire()

    def _run(self, train: Callable[[], Any]) -> None:
        try:
            train()
        except Exception as error:
            self.error = error
            self.done.release()


class _OneByOne(MoELoRALinear):
    """MoELoRA as CoIN's fork of PEFT computes it: one expert after another."""

    def forward(self, x_XD: Tensor) -> Tensor:
        """Return y_XO, to which each expert adds an output of its own."""
        y_XO, x_XD = self.base_layer(x_XD), x_XD.to(self.moelora_A.dtype)
        gate_XN = F.linear(x_XD, self.moelora_G).softmax(dim=-1)
        x_XD = F.dropout(x_XD, self.dropout, self.training)
        A, B = self.moelora_A.chunk(self.experts), self.moelora_B.chunk(self.experts, dim=1)
        for i in range(self.experts):
            expert_XO = F.linear(F.linear(x_XD, A[i]), B[i])
            y_XO = (y_XO + expert_XO * self.scale * gate_XN[..., i, None]).to(y_XO.dtype)
        return y_XO


def with_peft(module: nn.Module, settings: Any, targets: str) -> nn.Module:
    """Attach PEFT's LoRA."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
    )
    return get_peft_model(module, config)


def with_a_loop(module: nn.Module, settings: Any, targets: str) -> nn.Module:
    """Attach MoELoRA, computed as in the field."""
    adapter.build(settings).attach(module, targets)
    for layer in module.modules():
        if isinstance(layer, MoELoRALinear):
            layer.__class__ = _OneByOne
    return module


def _padded(lmm: LMM, rows: list[Encoded]) -> Batch:
    """Collate rows, all of them FIXED tokens long."""
    batch = lmm.collate(rows, "right")
    fillers = {"input_ids": lmm.pad_id, "attention_mask": 0, "labels": IGNORE}
    return batch | {
        name: F.pad(batch[name], (0, FIXED - batch[name].shape[1]), value=filler)
        for name, filler in fillers.items()
    }


def _told(ours: list[Cost], theirs: list[Cost], one: _Ours, other: _Theirs) -> str:
    """Return the rates of both, and by what share of it a step's loss differs at most."""
    pairs = zip(one.losses, other.losses, strict=True)
    apart = max(abs(a - b) / b for a, b in pairs)
    rates = [STEPS * BATCH / median(cost.cpu for cost in costs) for costs in (ours, theirs)]
    return (
        f"{rates[0]:.0f} and {rates[1]:.0f} samples/s of a core; the losses of "
        f"{len(one.losses)} steps, {one.losses[0]:.2f} to {one.losses[-1]:.2f}, differ by "
        f"{apart:.0e} of themselves at most"
    )


def _workspace() -> None:
    """Write the demo's config into the working directory, with as many examples as are needed."""
    shutil.copytree(REPOSITORY / "config", "config")
    Path("workflow").symlink_to(REPOSITORY / "workflow")
    task = yaml.safe_load(Path(f"config/tasks/{TASK}.yaml").read_text())
    num_examples = TURNS * STEPS * BATCH
    task["source"]["sizes"] = {"train": num_examples, "validation": 8, "test": 8}
    _write(f"tasks/{TASK}", task)
    _write("methods/experts", {"extends": "lora", "title": "8 experts", "adapter": EXPERTS})
    short = {"extends": "demo", "title": "One step", "fraction": BATCH / num_examples}
    _write("benchmarks/one-step", short)
    subprocess.run(["palimpsest", "convert", TASK], check=True, stdout=subprocess.DEVNULL)


def _write(name: str, content: dict[str, Any]) -> None:
    Path(f"config/{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def _one_step() -> None:
    shutil.rmtree("results/stages", ignore_errors=True)
    command = ["palimpsest", "train", f"one-step/demo-llava/lora/seed-0/{TASK}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
