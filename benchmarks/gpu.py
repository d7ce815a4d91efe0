"""One GPU and LLaVA-1.5-7B of random weights: a stage's steps, answers, and an adapter's merging.

`make bench-gpu` runs it within eight minutes and downloads nothing. The steps are those of a stage
(`training.loop.steps`, with the engine of one rank) in bf16, with CoIN's LoRA of rank 128 on all
linear layers of the language model, on batches of ready examples of about 700 tokens: how fast
pictures are read is not in it. The share of peak counts 4 N operations a token, 2 N forward and 2 N
backward through frozen weights, N all parameters, and is of 989 TFLOP/s, dense bf16 of an H100 or
H200. What the answers say has no meaning, and each is as long as it may be.

Without a GPU the same code runs with a tiny model: a rehearsal, whose numbers say nothing.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain, cycle
from statistics import median

os.environ["TORCHDYNAMO_DISABLE"] = "0"  # torch.compile is measured: see training/engine.py

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import random_llava
from bench import Claim
from palimpsest.config import Method, Model, load
from palimpsest.data.example import Example, Turn, characters
from palimpsest.evaluation.generate import answer
from palimpsest.methods.adapter import Adapter
from palimpsest.methods.answers import IGNORE
from palimpsest.models import checkpoint, choose_products
from palimpsest.models.demo import build_tokenizer
from palimpsest.models.families.llava import Llava
from palimpsest.models.lmm import DTYPES
from palimpsest.study import Manner
from palimpsest.training import engine as zero
from palimpsest.training import loop, memory
from palimpsest.training.progress import PEAKS

ON_GPU = torch.cuda.is_available()
SECONDS = 440  # after which nothing new is begun
WARM_UP, STEPS = (3, 8) if ON_GPU else (1, 2)
MICRO_BATCHES = (1, 2, 4, 8, 16) if ON_GPU else (1, 2)
USUAL = 4 if ON_GPU else 2  # the micro-batch at which variations are compared
ROUNDS = 5 if ON_GPU else 2  # of LoRA and MoELoRA in turn
BATCHES = {1: 8, 8: 32, 32: 64, 64: 128} if ON_GPU else {1: 2, 8: 8}  # of questions, and how many
A_PICTURE = 5  # questions, where pictures are shared
ANSWER = 16  # tokens of an answer
WORDS = 60  # of a question, several tokens each
VISION = {  # CLIP-L/336
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
}  # fmt: skip
TEXT = {  # Vicuna-7B
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
}  # fmt: skip
if not ON_GPU:
    VISION |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    VISION |= {"num_attention_heads": 2, "image_size": 56}
    TEXT |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    TEXT |= {"num_attention_heads": 2, "vocab_size": 512}


class Listed(list):
    """Examples as `answer` takes them."""

    def characters(self) -> list[int]:
        """The length of each."""
        return [characters(example) for example in self]


@dataclass(frozen=True)
class Rate:
    """What steps of one micro-batch each took."""

    micro_batch: int
    seconds: list[float]  # a step
    tokens: float  # a step
    parameters: int  # N
    peak_bytes: int
    loss: float

    @property
    def step(self) -> float:
        """Seconds of the median step."""
        return median(self.seconds)

    @property
    def share_of_peak(self) -> float:
        """Percent, in the 4 N convention."""
        return 100 * 4 * self.parameters * self.tokens / self.step / PEAKS["H200"]

    def __str__(self) -> str:
        return (
            f"{self.micro_batch / self.step:.2f} samples/s, {self.tokens / self.step:.0f} tokens/s,"
            f" {self.share_of_peak:.1f} % of peak, {self.peak_bytes / 2**30:.1f} GiB, loss "
            f"{self.loss:.3f}"
        )


class Trained:
    """A model with an adapter, and an engine that takes steps with it."""

    def __init__(self, lmm: Llava, model: Model, method: Method) -> None:
        self.lmm, self.model, self.method = lmm, model, method
        self.adapter: Adapter = checkpoint.attach(lmm, model, method)
        trained = (p for p in lmm.module.parameters() if p.requires_grad)
        self.initial = [(p, p.detach().clone()) for p in trained]

    def steps(
        self, world: zero.World, batch: dict[str, Tensor], objective: type = loop.AnswerLoss
    ) -> Iterator[loop.Step]:
        """Take steps on one batch of `world.micro_batch` examples, for ever, from the first on."""
        for parameter, value in self.initial:
            parameter.data.copy_(value)
        engine = zero.start(objective(self.lmm.module), self.model, self.method, world, lambda _: 1)
        never = lambda: False  # noqa: E731
        yield from loop.steps(engine, cycle([batch]), world, int, never, 0, 10**9)


class FullLogits(nn.Module):
    """The head at every position, as models of transformers apply it by themselves."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, labels: Tensor, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `AnswerLoss` does."""
        mean = self.module(**batch, labels=labels, use_cache=False).loss
        return mean * (labels[:, 1:] != IGNORE).sum(), torch.zeros_like(mean)


class Bench:
    """The models of this benchmark, what was claimed, and how much time is left."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.claims: list[Claim] = []
        model = load(Model, "llava-1.5-7b").model_copy(
            update={"micro_batch": USUAL, "zero_stage": 0, "pictures": None}
        )
        methods = [load(Method, f"{name}-coin") for name in ("lora", "moelora")]
        methods = [m.model_copy(update={"train_projector": False}) for m in methods]
        self.world = zero.join(model, USUAL)
        choose_products(model)
        lmm, twin = _models(model, str(self.world.device))
        self.parameters = sum(p.numel() for p in lmm.module.parameters())
        self.lora = Trained(lmm, model, methods[0])
        self.other = (twin, model, methods[1])
        self.examples = Listed(_examples(max(BATCHES.values())))

    def batch(self, size: int, trained: Trained | None = None) -> dict[str, Tensor]:
        """Return a batch of so many examples."""
        lmm = (trained or self.lora).lmm
        return lmm.collate([lmm.encode(e) for e in self.examples[:size]], "right")

    def rate(
        self, size: int, objective: type = loop.AnswerLoss, batch: dict[str, Tensor] | None = None
    ) -> Rate:
        """Measure steps with LoRA, in an engine of their own."""
        world = replace(self.world, micro_batch=size, accumulation=1)
        _clean()
        taken = self.lora.steps(world, batch or self.batch(size), objective)
        try:
            for _ in range(WARM_UP):
                next(taken)
            timed = [_timed(lambda: next(taken)) for _ in range(STEPS)]
        finally:
            taken.close()
        seconds, steps = [t for t, _ in timed], [step for _, step in timed]
        peak = torch.cuda.max_memory_allocated() if ON_GPU else 0
        return Rate(size, seconds, steps[0].tokens, self.parameters, peak, steps[0].loss)

    def claim(
        self, what: str, values: Sequence[float], unit: str, beside: str, goal: str = ""
    ) -> None:
        """Claim the median of some values; of a rehearsal nothing is expected."""
        if not ON_GPU:
            what, goal = f"rehearsal on CPU, tiny model: {what}", ""
        self.claims.append(
            Claim(what, median(values), min(values), max(values), unit, goal, beside)
        )
        print(f"  {what}: {median(values):.3g} {unit} ({beside})", flush=True)

    def attempt(self, what: str, measure: Callable[[], None]) -> str:
        """Measure something, if there is time; return "", or why nothing came of it, and say so."""
        why = ""
        try:
            if time.monotonic() - self.begun > SECONDS:
                why = "left out, as the time was up"
            else:
                measure()
        except torch.OutOfMemoryError:
            why = "out of memory"
        except Exception as error:  # such as a kernel that is not installed
            if not ON_GPU and not isinstance(error, ImportError):
                raise  # what a rehearsal is for
            why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if why:
            print(f"  {what}: {why}", flush=True)
        return why


def claims() -> list[Claim]:
    """Measure all, the most important first."""
    bench = Bench()
    bench.attempt("estimate", lambda: _estimate(bench))
    _micro_batches(bench)
    bench.attempt("generation", lambda: _generation(bench))  # the other model is plain as yet
    bench.attempt("MoELoRA", lambda: _moelora(bench))
    _variations(bench)
    bench.attempt("merge", lambda: _merge(bench))
    zero.leave()
    return bench.claims


def _estimate(bench: Bench) -> None:
    """What a stage says it will take, against what PyTorch's allocator gave out."""
    needs = memory.needs(bench.lora.lmm, bench.examples[:USUAL], held=0)
    estimate = needs.of(USUAL, zero_stage=0, ranks=1)
    rate = bench.rate(USUAL)
    if not ON_GPU:
        return  # benchmarks/memory.py measures it there
    error = 100 * abs(estimate.total - rate.peak_bytes) / rate.peak_bytes
    told = f"estimated {estimate}; measured {rate.peak_bytes / 2**20:,.0f} MiB"
    bench.claim("memory of a LoRA stage: estimate off by", [error], "%", told, "≤ 20")


def _micro_batches(bench: Bench) -> None:
    """Speed and memory over micro-batches; the best of them against the goal."""
    rates: list[Rate] = []
    told = []
    for size in MICRO_BATCHES:

        def measure(size: int = size) -> None:
            rates.append(bench.rate(size))
            values = [size / seconds for seconds in rates[-1].seconds]
            bench.claim(f"LoRA stage, micro-batch {size}", values, "samples/s", str(rates[-1]))

        if why := bench.attempt(f"micro-batch {size}", measure):
            told.append(f"micro-batch {size}: {why}")
    if rates:
        best = max(rates, key=lambda rate: rate.share_of_peak)
        told.insert(0, f"micro-batch {best.micro_batch}: {best}")
        shares = [best.share_of_peak * best.step / seconds for seconds in best.seconds]
        what = "LoRA stage: share of peak (4N FLOP a token, of 989 TFLOP/s)"
        bench.claim(what, shares, "%", "; ".join(told), "≥ 50")


def _moelora(bench: Bench) -> None:
    """Steps of MoELoRA over those of LoRA of the same rank, in turn."""
    _clean()
    world = replace(bench.world, micro_batch=USUAL, accumulation=1)
    other = Trained(*bench.other)
    ways = [t.steps(world, bench.batch(USUAL, t)) for t in (bench.lora, other)]
    for _ in range(WARM_UP):
        for way in ways:
            next(way)
    ratios = []
    for _ in range(ROUNDS):
        lora, moelora = ([_timed(lambda way=way: next(way))[0] for _ in range(3)] for way in ways)
        ratios.append(sum(moelora) / sum(lora))
    for way in ways:
        way.close()
    told = f"CoIN's: rank 128, 8 experts; micro-batch {USUAL}, {ROUNDS} rounds of 3 steps in turn"
    bench.claim("MoELoRA over LoRA, a step", ratios, "×", told, "≤ 1.3")


def _generation(bench: Bench) -> None:
    """Questions a second, by batch, and where five questions share a picture.

    The model has no adapter, as after merging.
    """
    _clean()
    rates, few = {}, bench.examples[:8]
    plain = bench.other[0]
    reading = _timed(lambda: [plain.encode_prompt(e) for e in few])[0] / len(few)
    for batch, number in BATCHES.items():
        asked = Listed(bench.examples[:number])
        why = bench.attempt(
            f"batch {batch}", lambda b=batch, a=asked: rates.update({b: _asked(bench, b, a)})
        )
        if not why:
            told = (
                f"{number} questions, each about its own picture, answers of {ANSWER} tokens; "
                f"of {1000 / rates[batch]:.1f} ms a question {1000 * reading:.1f} go into "
                "reading it and its picture, on one core"
            )
            bench.claim(f"generation, batch {batch}", [rates[batch]], "questions/s", told)
    largest = max(rates)
    one = bench.examples[: BATCHES[largest]]
    asked = [replace(e, image=one[i - i % A_PICTURE].image) for i, e in enumerate(one)]
    shared = _asked(bench, largest, Listed(asked))
    told = f"{len(asked)} questions, {A_PICTURE} about a picture"
    bench.claim(f"generation, batch {largest}, shared", [shared], "questions/s", told)
    told = f"batch {largest} over batch 1, the same questions where both have them"
    bench.claim("generation: batched", [rates[largest] / rates[1]], "×", told, "≥ 10")
    told = f"the same, {A_PICTURE} questions about a picture"
    bench.claim("generation: batched, shared", [shared / rates[1]], "×", told, "≥ 10")


def _asked(bench: Bench, batch: int, asked: Listed) -> float:
    """Return questions a second."""
    manner = Manner("bench", {}, ANSWER)
    lmm = bench.other[0]
    answer(lmm, Listed(asked[:batch]), manner, batch)  # a warm-up
    seconds, _ = _timed(lambda: answer(lmm, asked, manner, batch))
    return len(asked) / seconds


def _variations(bench: Bench) -> None:
    """What a LoRA step gains or loses by one thing that is otherwise."""
    usual: list[Rate] = []
    if bench.attempt("usual", lambda: usual.append(bench.rate(USUAL))):
        return
    for what, changed, objective in (
        ("checkpointing", _checkpointed, loop.AnswerLoss),
        ("the head at every position", _unchanged, FullLogits),
        ("attention by eager", lambda m: _attending(m, "eager"), loop.AnswerLoss),
        (
            "attention by flash_attention_2",
            lambda m: _attending(m, "flash_attention_2"),
            loop.AnswerLoss,
        ),
        ("fp32 instead of TF32", _exact, loop.AnswerLoss),
        ("torch.compile of the layers", _compiled, loop.AnswerLoss),
    ):

        def measure(what=what, changed=changed, objective=objective) -> None:
            with changed(bench.lora.lmm.module):
                rate = bench.rate(USUAL, objective)
            _compare(bench, what, rate, usual[0])

        bench.attempt(what, measure)
    alike = bench.lora.lmm.collate([bench.lora.lmm.encode(bench.examples[0])] * USUAL, "right")
    bench.attempt(
        "lengths",
        lambda: _compare(bench, "equal lengths", bench.rate(USUAL, batch=alike), usual[0]),
    )


def _compare(bench: Bench, what: str, rate: Rate, usual: Rate) -> None:
    """Claim how long a token of steps takes, as times that of the usual ones."""
    each = usual.step / usual.tokens
    times = [seconds / rate.tokens / each for seconds in rate.seconds]
    bench.claim(f"LoRA step with {what}, over the usual", times, "×", f"{rate}; usual: {usual}")


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    yield


@contextmanager
def _checkpointed(module: nn.Module) -> Iterator[None]:
    module.activation_checkpointing_enable()
    try:
        yield
    finally:
        module.activation_checkpointing_disable()


@contextmanager
def _attending(module: nn.Module, kernel: str) -> Iterator[None]:
    usual = module.config.get_text_config()._attn_implementation
    module.set_attn_implementation(kernel)
    try:
        yield
    finally:
        module.set_attn_implementation(usual)


@contextmanager
def _exact(module: nn.Module) -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = True


@contextmanager
def _compiled(module: nn.Module) -> Iterator[None]:
    layers = module.model.language_model.layers
    for layer in layers:
        layer.compile(backend="inductor" if ON_GPU else "eager")  # CPU code takes minutes to make
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def _merge(bench: Bench) -> None:
    """Fold LoRA into the base weights, and put these back from a copy."""
    _clean()
    module, adapter = bench.lora.lmm.module, bench.lora.adapter
    layers = {n: m for n, m in module.named_modules() if hasattr(m, "get_base_layer")}
    kept = {name: layer.get_base_layer().weight.detach().clone() for name, layer in layers.items()}
    merged, _ = _timed(lambda: adapter.merge(module))

    @torch.no_grad()
    def restore() -> None:
        for name, weight in kept.items():
            module.get_submodule(name).weight.copy_(weight)

    restored, _ = _timed(restore)
    told = f"{len(kept)} layers, {sum(w.nbytes for w in kept.values()) / 2**30:.1f} GiB of weights"
    bench.claim("merge of LoRA into the base weights", [merged], "s", told)
    bench.claim("restore of the base weights from a copy on the device", [restored], "s", told)


def _models(model: Model, device: str) -> tuple[Llava, Llava]:
    """Return two models that share their weights."""
    tokenizer = build_tokenizer([*_vocabulary(), model.chat.system])
    shape = random_llava.config(tokenizer, dict(VISION), dict(TEXT))
    module = random_llava.build(shape, device, DTYPES[model.precision]).eval()
    tensors = chain(module.parameters(), module.buffers())
    twin = deepcopy(module, {id(tensor): tensor for tensor in tensors})
    processor = random_llava.image_processor(VISION["image_size"])
    lmm, other = (Llava(model, m, tokenizer, processor) for m in (module, twin))
    return lmm, other


def _examples(number: int) -> list[Example]:
    """Return examples with a picture of noise each; questions differ a little in length."""
    rng = np.random.default_rng(0)
    side = VISION["image_size"]
    words = _vocabulary()
    examples = []
    for i in range(number):
        buffer = BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
        question = " ".join(rng.choice(words, WORDS + i % 8))
        turn = Turn(question, " ".join(rng.choice(words, 4)))
        examples.append(Example(str(i), buffer.getvalue(), (turn,), (turn.answer,)))
    return examples


def _vocabulary() -> list[str]:
    return [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(10) for j in range(10)]


def _timed(work: Callable[[], object]) -> tuple[float, object]:
    """Return seconds by the wall's clock, until the device has done all of it, and the result."""
    _wait()
    begun = time.perf_counter()
    result = work()
    _wait()
    return time.perf_counter() - begun, result


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def _clean() -> None:
    """Free what earlier measurements left, and forget their peak."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
