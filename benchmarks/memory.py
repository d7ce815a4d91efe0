"""The memory that a stage says it will take, against what it took.

Each stage is trained in a process of its own. Measured is the most memory that the process held
(VmHWM of Linux), and both numbers are less what it held before the model was loaded: interpreter
and libraries would flatter the estimate. The shapes are those in which one term after another
weighs most. What this does not say: how well it holds on a GPU, which `make bench-gpu` measures.

And the activations of a bf16 model with adapters, in bytes of tensors that are alive together on
the way back, against PEFT's LoRA and against MoELoRA with one expert after another, as in CoIN's
fork of PEFT. That is counted for one layer of a decoder (the difference of two sizes of model), in
Llama's proportions and with LLaVA-1.5's number of tokens; what a stage needs besides is not in it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import HERE, Claim, in_own_process

TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
RESULTS = Path("results")
STEPS = 3  # Adam's moments are there from the second on
WITHIN = 20  # percent
SIDE = 64  # pixels of a picture
HEADS = 4
DEMO = HERE.parent / "workflow/weights/demo-llava"
QUARTER = {"hidden_size": 1024, "intermediate_size": 2752}  # of Llama-7B's widths
TOKENS, ANSWER = 640, 5  # 576 of them would be a picture's


@dataclass(frozen=True)
class Shape:
    """A stage to be trained: what about a LLaVA is large, and the method."""

    micro_batch: int
    method: str = "lora"
    patch: int = 16  # pixels
    text: dict[str, int] = field(default_factory=dict)  # of its LlamaConfig; {}: the demo model

    @property
    def model(self) -> str:
        """The directory of its weights in a workspace."""
        return f"weights/{'-'.join(map(str, (self.patch, *self.text.values())))}"


WIDE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
SHAPES = {
    "demo model, LoRA": Shape(32),
    "demo model, MoELoRA": Shape(32, "moelora"),
    "wide, LoRA": Shape(16, text=WIDE),
    "wide, all trained": Shape(2, "subset", text=WIDE),
    "256 picture tokens, MoELoRA": Shape(8, "moelora", patch=4, text=SMALL),
    "32,000 words, LoRA": Shape(32, text=SMALL | {"vocab_size": 32_000}),
}


def claims() -> list[Claim]:
    """Compare estimate and peak for each shape."""
    made = []
    with tempfile.TemporaryDirectory() as place:
        _prepare(Path(place))
        for name in SHAPES:
            made.append(_claim(name, in_own_process(__file__, place, name)))
            print(f"  {name}: {made[-1].value:.1f} %, {made[-1].beside}", file=sys.stderr)
    import training  # the field's ways; a heavy import, which `measure` must not have

    made.append(_counted("LoRA", "PEFT's against ours", training.with_peft))
    made.append(_counted("MoELoRA", "expert by expert against ours", training.with_a_loop))
    return made


def _counted(method: str, against: str, attach: Callable[..., Any]) -> Claim:
    """Compare the activations of our adapter with those of another way to attach it."""
    from palimpsest.methods.adapter import build

    def ours(module: Any, settings: Any, targets: str) -> None:
        build(settings).attach(module, targets)

    ways = [_activations(method, way) for way in (ours, attach)]
    ratio = ways[1] / ways[0]
    layers = [32 * 4 * each / 2**30 for each in ways]  # of 4 times the width: LLaVA-1.5-7B's
    told = (
        f"{ways[0] / 2**20:.1f} MiB and {ways[1] / 2**20:.1f} MiB a layer and example; with the 32 "
        f"layers of LLaVA-1.5-7B, {layers[0]:.1f} and {layers[1]:.1f} GiB an example"
    )
    return Claim(f"activations of {method} in bf16, {against}", *[ratio] * 3, "×", "", told)


def _activations(method: str, attach: Callable[..., Any]) -> float:
    """Return the bytes that one more layer keeps of an example."""
    import torch
    from transformers import PreTrainedTokenizerFast

    import random_llava
    from palimpsest.methods import settings as s
    from palimpsest.methods.answers import IGNORE
    from palimpsest.training import memory

    tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO)
    chosen = {
        "LoRA": s.Lora(name="lora", rank=32, alpha=64, dropout=0.05),
        "MoELoRA": s.MoELora(name="moelora", rank=32, alpha=64, experts=8, dropout=0.05),
    }[method]
    eyes = {"image_size": SIDE, "patch_size": 16, "num_hidden_layers": 1}  # and not looked with
    words_1L = torch.full((1, TOKENS), tokenizer.eos_token_id)
    labels_1L = torch.full_like(words_1L, IGNORE)
    labels_1L[:, -ANSWER:] = tokenizer.eos_token_id
    batch = {"input_ids": words_1L, "attention_mask": words_1L > 0, "labels": labels_1L}
    found = []
    for layers in (1, 3):
        text = QUARTER | {"num_hidden_layers": layers, "num_attention_heads": 8}
        config = random_llava.config(tokenizer, eyes, text)
        module = random_llava.build(config, "cpu", torch.bfloat16)
        attach(module, chosen, TARGETS)
        found.append(memory.activations(module, batch))
    return (found[1] - found[0]) / 2


def _claim(name: str, found: dict[str, int]) -> Claim:
    before = found["before"]
    estimate, peak = found["estimate"] - before, found["peak"] - before
    error = 100 * abs(estimate - peak) / peak
    told = (
        f"estimated {estimate / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB, besides "
        f"{before / 2**20:.0f} MiB of libraries"
    )
    return Claim(f"estimate of {name}: off by", error, error, error, "%", f"≤ {WITHIN}", told)


def _prepare(root: Path) -> None:
    """Make a workspace with the weights of all shapes, a model and a task for each."""
    import torch
    from transformers import PreTrainedTokenizerFast

    import random_llava
    from workspace import LORA, MODEL, MOELORA, change, convert, make_workspace, write

    with chdir(root):
        make_workspace(root)
        convert("choice")
        change(root, "methods/lora", adapter=LORA["adapter"] | {"rank": 16})
        change(root, "methods/lora", training__epochs=None, training__steps=STEPS)
        change(root, "methods/moelora", adapter=MOELORA | {"rank": 16, "experts": 8})
        write(
            root,
            "methods/subset",
            {"extends": "lora", "title": "All", "adapter": {"name": "subset"}},
        )
        change(
            root,
            "models/tiny",
            adapter_targets=TARGETS,
            max_length=512,
            trainable=r"model\.language_model",
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL["weights"])
        pieces = (tokenizer, random_llava.image_processor(SIDE))
        for shape in SHAPES.values():
            if not shape.text or Path(shape.model).exists():
                continue
            vision = {
                "image_size": SIDE,
                "patch_size": shape.patch,
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": HEADS,
            }
            config = random_llava.config(
                tokenizer, vision, {"num_attention_heads": HEADS, **shape.text}
            )
            module = random_llava.build(config, "cpu", torch.float32)
            for piece in (module, *pieces):
                piece.save_pretrained(shape.model)


def measure(shape: Shape) -> dict[str, int]:
    """Train a stage in this process and directory; return estimate, peak, and what was before."""
    from palimpsest.attempts import Attempts
    from palimpsest.files import read_json
    from palimpsest.training import memory
    from palimpsest.training import stage as stages
    from workspace import change, stage_of

    weights = shape.model if shape.text else str(DEMO)
    change(Path(), "models/tiny", weights=weights, micro_batch=shape.micro_batch)
    change(Path(), "methods/lora", training__batch=shape.micro_batch)
    before = []

    def load(model: Any) -> Any:
        before.append(memory.resident())
        return load_model(model)

    load_model, stages.load_model = stages.load_model, load
    stage = stage_of("choice", shape.method)
    shutil.rmtree(RESULTS / "stages", ignore_errors=True)  # of another shape
    Attempts(stage.resume(RESULTS)).begin()  # as launch.run_stage does
    stages.train(stage, RESULTS)
    record = read_json(stage.directory(RESULTS) / stages.RECORD)
    rows = dict(row.split(":") for row in Path("/proc/self/status").read_text().splitlines())
    peak = int(rows["VmHWM"].split()[0]) * 1024
    return {"before": before[0], "peak": peak, "estimate": record["estimated_memory_bytes"]}


if __name__ == "__main__":
    with chdir(sys.argv[1]), redirect_stdout(sys.stderr):
        found = measure(SHAPES[sys.argv[2]])
    print(json.dumps(found))
