"""A complete little project in a directory: three rendered tasks, a random LLaVA, a study `tiny`.

Paths of the package are relative to the working directory, so a test changes into a workspace, or
runs commands there. A stage needs processes of its own, as DeepSpeed starts once in a process:
`Job` forks them from a test that has imported everything, which saves seconds each time.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from palimpsest import cli, config, study
from palimpsest.attempts import Attempts
from palimpsest.lineage import Stage

REPOSITORY = Path(__file__).parents[2]
TASKS = ("choice", "reading", "counting")
ANSWERS = {  # answer format and the longest answer, in tokens with the end
    "choice": ("[ABC]", 4),
    "reading": ("[A-Z]{3,4}", 8),
    "counting": ("[0-9]|yes|no|red|blue|green|yellow|pink|cyan", 4),
}
MODEL = {
    "title": "Tiny",
    "family": "llava",
    "weights": "weights/tiny",
    "chat": {
        "system": "<s>",
        "image": "<image>\n",
        "user": "USER: {question} ",
        "assistant": "ASSISTANT: {answer}</s>",
    },
    "max_length": 128,
    "adapter_targets": r".*language_model.*\.(q_proj|v_proj|down_proj)",
    "projector": "model.multi_modal_projector",
    "precision": "fp32",
    "micro_batch": 8,
    "zero_stage": 0,
    "resources": {"memory_mb": 500, "minutes": 10, "checkpoint_steps": 4},
}
LORA = {
    "title": "LoRA",
    "source": "a test",
    "adapter": {"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.1},
    "training": {
        "batch": 8, "epochs": 1, "learning_rate": 0.02, "schedule": "cosine", "warmup": 0.1,
    },
}  # fmt: skip
MOELORA = {"name": "moelora", "rank": 4, "alpha": 8, "experts": 2}
STUDY = {
    "title": "A tiny study",
    "benchmark": "three",
    "models": ["tiny"],
    "methods": ["lora"],
    "orders": ["first"],
    "seeds": [0],
    "references": {
        "zero-shot": {"title": "Zero-shot", "protocol": "zero-shot"},
        "direct": {"title": "Direct", "protocol": "direct", "method": "lora"},
        "joint": {"title": "Joint", "protocol": "joint", "method": "lora"},
    },
    "evaluation": {"fan_out": "stage", "split": "test", "batch": 64},
}


def make_workspace(
    path: Path, *, train: int = 96, validation: int = 8, test: int = 24, batch: int = 8
) -> Path:
    """Write a project into a directory and return it; nothing is converted or trained yet.

    There are the tasks choice, reading and counting with `train`, `validation` and `test` examples,
    the benchmarks `three` and `three-blind`, the model `tiny`, the methods `lora` (with dropout),
    `moelora` and `replay` with a global batch of `batch`, the study `tiny`, and the workflow.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    orders = {"first": list(TASKS), "second": ["choice", "counting", "reading"]}
    for task in TASKS:
        write(path, f"tasks/{task}", _task(task, sizes))
    write(path, "benchmarks/three", {"title": "Three", "orders": orders})
    blind = {"extends": "three", "title": "Three, blind", "pictures": "blank"}
    write(path, "benchmarks/three-blind", blind)
    write(path, "models/tiny", MODEL)
    write(path, "methods/lora", LORA | {"training": LORA["training"] | {"batch": batch}})
    write(path, "methods/moelora", {"extends": "lora", "title": "MoELoRA", "adapter": MOELORA})
    replay = {"name": "reservoir", "capacity": 40, "share": 0.25}
    write(path, "methods/replay", {"extends": "lora", "title": "Replay", "rehearsal": replay})
    write(path, "tiny", STUDY)
    save_tiny_model(path / "weights" / "tiny")
    for name in ("Snakefile", "rules", "profiles"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, path / name)
    (path / "workflow").symlink_to(REPOSITORY / "workflow")
    return path


@contextmanager
def entered(path: Path, **sizes: int) -> Iterator[Path]:
    """Make a workspace, work in it, and convert its tasks."""
    with chdir(make_workspace(path, **sizes)):
        convert()
        yield path
    forget()


def write(root: Path, name: str, content: dict[str, Any]) -> None:
    """Write `config/<name>.yaml` of a workspace."""
    path = root / "config" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    forget()


def change(root: Path, name: str, **values: Any) -> None:
    """Set values of `config/<name>.yaml` of a workspace; `a__b=1` sets key b inside a."""
    content = yaml.safe_load((root / "config" / f"{name}.yaml").read_text())
    for key, value in values.items():
        *outer, last = key.split("__")
        inner = content
        for part in outer:
            inner = inner[part]
        inner[last] = value
    write(root, name, content)


def forget() -> None:
    """Forget what was loaded, as a new process does."""
    config._load.cache_clear()
    study.identity.cache_clear()


def convert(*tasks: str) -> None:
    """Convert tasks of the workspace that is the working directory; all if none is named."""
    for task in tasks or TASKS:
        cli.convert(cli.parser().parse_args(["convert", task]))


def stage_of(
    lineage: str, method: str = "lora", benchmark: str = "three", seed: int = 0, model: str = "tiny"
) -> Stage:
    """Return a stage by its lineage; the base of the model for `base`."""
    owner = "" if lineage == "base" else f"{method}/seed-{seed}/"
    return Stage.parse(f"{benchmark}/{model}/{owner}{lineage}")


def palimpsest(root: Path, *arguments: str) -> subprocess.Popen:
    """Start a command in a workspace, in a process group of its own; its output is one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "palimpsest.cli", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


class Job:
    """The ranks of a stage's training, forked from this process, in its working directory.

    `prepare` is called in each rank before it trains, to change what the test wants changed.
    """

    def __init__(
        self,
        stage: Stage,
        ranks: int = 1,
        seconds_left: float | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.stage, self.results, self.prepare = stage, Path("results").resolve(), prepare
        self.log = self.results / "logs" / f"{stage.path.replace('/', '-')}-{time.time_ns()}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        import_module("palimpsest.training.stage")  # before the fork, and not once a rank
        store = import_module("torch.distributed").TCPStore("127.0.0.1", 0, is_master=True)
        fork = multiprocessing.get_context("fork")
        self.ranks = [
            fork.Process(
                target=self._train, args=(rank, ranks, store.port, seconds_left), daemon=True
            )
            for rank in range(ranks)
        ]
        self._store = store  # the ranks meet here
        for rank in self.ranks:
            rank.start()

    def wait(self, timeout: float = 120) -> list[int]:
        """Return the exit codes of the ranks; those that take too long print where they are."""
        end = time.monotonic() + timeout
        for rank in self.ranks:
            rank.join(max(0, end - time.monotonic()))
        for rank in self.ranks:
            if rank.is_alive():
                os.kill(rank.pid, signal.SIGABRT)
            rank.join()
        return [rank.exitcode for rank in self.ranks]

    @property
    def text(self) -> str:
        """What the job has printed."""
        return self.log.read_text()

    def _train(self, rank: int, ranks: int, port: int, seconds_left: float | None) -> None:
        with self.log.open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }  # fmt: skip
        faulthandler.enable(1)
        gc.freeze()  # what the parent has left, a store with its thread, is not ours to destroy
        forget()
        train = import_module("palimpsest.training.stage").train
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)  # not what pytest put there
        try:
            if rank == 0:  # as launch.run_stage does
                Attempts(self.stage.resume(Path("results"))).begin()
            self.prepare()
            os._exit(train(self.stage, Path("results"), seconds_left))
        except ValueError as error:
            print(f"palimpsest: error: {error}")
            os._exit(1)


def train(stage: Stage, ranks: int = 1, prepare: Callable[[], None] = lambda: None) -> str:
    """Train a stage in the working directory; return what was printed. It must succeed."""
    job = Job(stage, ranks, prepare=prepare)
    codes = job.wait()
    assert codes == [0] * ranks, f"{codes}\n{job.text}"
    return job.text


def handed_on(stage: Stage) -> dict[str, bytes]:
    """Return the bytes of the files of a stage, without its record of times and places."""
    out = stage.directory(Path("results"))
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "stage.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def save_tiny_model(directory: Path, seed: int = 0) -> None:
    """Save a LLaVA of random weights as its publisher would: weights, tokenizer, image processor.

    64 x 64 pictures make four tokens; it knows the words of the three tasks.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    from palimpsest.models.demo import IMAGE, PICTURE_SIDE, build_image_processor, build_tokenizer

    torch = import_module("torch")
    tokenizer = build_tokenizer(_texts())
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PICTURE_SIDE,
        patch_size=PICTURE_SIDE // 2,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,  # so that random answers differ
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=4,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Llava(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    build_image_processor().save_pretrained(directory)


def _task(name: str, sizes: dict[str, int]) -> dict[str, Any]:
    answer_format, longest = ANSWERS[name]
    return {
        "version": 1,
        "title": name.title(),
        "category": name,
        "reader": "rendered",
        "source": {"scene": name, "seed": 7, "sizes": sizes},
        "prompt": "{question}\nAnswer shortly.",
        "answer_format": answer_format,
        "metric": "exact_match",
        "max_new_tokens": longest,
        "licence": "CC0-1.0",
    }


@cache
def _texts() -> tuple[str, ...]:
    """What the tokenizer learns its words from."""
    read = import_module("palimpsest.data.readers.rendered").read
    examples = [
        e.with_prompt(_task(task, {})["prompt"])
        for task in TASKS
        for e in read({"scene": task, "seed": 7, "sizes": {"train": 64}}, "train", Path())
    ]
    return tuple(f"{t.question} {t.answer}" for e in examples for t in e.turns)
