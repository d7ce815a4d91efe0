"""How much memory a stage will take on a rank, with the arithmetic, before it starts.

What a training example needs is not guessed from a model's shape but counted: the longest one goes
through the model and back, alone and twice, while every tensor that is made is noted. So each
family, adapter, attention and picture is known as it is; how ranks share out what is trained is
DeepSpeed's arithmetic. `auto` in a model's config is made a number by the estimate.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palimpsest.config import Model
from palimpsest.data.example import Example
from palimpsest.models.lmm import LMM
from palimpsest.training.engine import World
from palimpsest.training.loop import AnswerLoss

FREE = 0.1  # share of the memory that is left free: a CUDA context, fragments, other processes
GATHERED = 10**9  # parameters that ZeRO-3 may have whole at a time, `stage3_max_live_parameters`
# On CPU the C library (glibc 2.36) gives no freed block to the next tensor of the same size, as it
# looks for room to align it: activations fill 2.0 to 2.3 times their own size, measured.
HEAP = 2.15
VALUE = 4  # bytes of what is trained, of its gradient, and of each of Adam's moments


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank, term by term, when it holds most."""

    micro_batch: int
    zero_stage: int
    tokens: int  # of the longest example
    libraries: int  # what the process holds besides tensors; nothing on a GPU
    frozen: int
    trained: int
    adam: int  # two moments, and the master copy that ZeRO keeps
    held: int  # by a regulariser
    gradients: int  # and the buffer from which ZeRO shares them out
    activations: int  # of a micro-batch of the longest
    copies: int  # of gradients, when the activations have gone

    @property
    def total(self) -> int:
        """All of it: a step holds most either before its backward pass or after it."""
        return sum(self._terms().values())

    def _terms(self) -> dict[str, int]:
        last = "activations" if self.activations >= self.copies else "copies"
        names = ("libraries", "frozen", "trained", "adam", "held", "gradients", last)
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        terms = " + ".join(f"{n} {_mib(b)}" for n, b in self._terms().items() if b)
        each = _mib(self.activations // self.micro_batch)
        return (
            f"{_mib(self.total)} MiB = {terms} (micro-batch: {self.micro_batch} x {each} MiB, as "
            f"the longest example takes, of {self.tokens} tokens; ZeRO stage {self.zero_stage})"
        )


@dataclass(frozen=True)
class Needs:
    """What a stage needs, however its batches and its parameters are shared out."""

    libraries: int  # bytes, as all that follows but where said
    frozen: int
    num_frozen: int  # parameters
    num_trained: int  # parameters
    held: int
    tokens: int  # of the longest example
    first: int  # activations of one example
    further: int  # activations of each one more

    def of(self, micro_batch: int, zero_stage: int, ranks: int) -> Estimate:
        """Return the estimate for a choice of micro-batch and ZeRO stage."""
        shared = [ranks if zero_stage >= stage else 1 for stage in range(4)]
        trained, share = self.num_trained * VALUE, self.num_trained * VALUE // ranks
        frozen = self.frozen // shared[3]
        if zero_stage == 3:  # what is gathered of it, too
            frozen += self.frozen * min(GATHERED, self.num_frozen) // max(1, self.num_frozen)
        return Estimate(
            micro_batch=micro_batch,
            zero_stage=zero_stage,
            tokens=self.tokens,
            libraries=self.libraries,
            frozen=frozen,
            trained=trained // shared[3],
            adam=3 * share if zero_stage else 2 * trained,
            held=self.held,
            gradients=trained // shared[2] + (trained if zero_stage else 0),
            activations=self.first + (micro_batch - 1) * self.further,
            copies=2 * share if zero_stage else trained,
        )


def needs(lmm: LMM, long: Iterable[Example], held: int) -> Needs:
    """Count what a stage needs, by the longest of some training examples, in tokens.

    The module is on its device, with the adapter attached, and not yet in an engine's hands;
    `held` are the bytes that a regulariser holds for each trained parameter. Nothing is changed by
    it, random states included.
    """
    parameters = list(lmm.module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    encoded = max(map(lmm.encode, long), key=lambda one: len(one.input_ids))
    on_cpu = lmm.module.device.type == "cpu"
    heap = HEAP if on_cpu else 1
    first, second = (
        round(heap * activations(lmm.module, lmm.collate([encoded] * n, "right"))) for n in (1, 2)
    )
    weights = sum(p.nbytes for p in parameters)
    return Needs(
        libraries=max(0, resident() - weights) if on_cpu else 0,
        frozen=sum(p.nbytes for p in parameters if not p.requires_grad),
        num_frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        num_trained=trained,
        held=held * trained,
        tokens=len(encoded.input_ids),
        first=first,
        further=second - first,
    )


def choose(needs: Needs, model: Model, batch: int, world: World) -> dict[str, Tensor]:
    """Return `micro_batch` and `zero_stage` as a model's config has them, `auto` made a number.

    That is the smallest ZeRO stage with which something fits into a rank's memory, and the largest
    micro-batch that fits then; the same on every rank.

    Errors: ValueError if nothing fits, or if the ranks cannot share the batch evenly.
    """
    room = _room(model, world, needs.libraries)
    stages = range(4) if model.zero_stage == "auto" else [model.zero_stage]
    micro_batches = model.micro_batches_of(batch, world.size)
    estimates = [needs.of(micro, stage, world.size) for stage in stages for micro in micro_batches]
    least = min(estimates, key=lambda estimate: estimate.total)
    if least.total > room:
        raise ValueError(
            f"{', '.join(model.left_open)}: auto: nothing fits into the {_mib(room)} MiB of a rank "
            f"({FREE:.0%} of all are left free). The least would take {least}. Give a rank more "
            "(`resources`: memory_mb, or a larger GPU), have more ranks share it, or cut examples "
            "off (`max_length`)"
        )
    best = next(estimate for estimate in estimates if estimate.total <= room)
    if world.rank == 0:
        print(
            f"auto: micro_batch {best.micro_batch} of {', '.join(map(str, micro_batches))} and "
            f"zero_stage {best.zero_stage} fit into the {_mib(room)} MiB of a rank ({FREE:.0%} of "
            "all are left free)",
            flush=True,
        )
    return {name: torch.tensor(getattr(best, name)) for name in ("micro_batch", "zero_stage")}


def _room(model: Model, world: World, libraries: int) -> int:
    """Return the bytes that a rank may fill: of its GPU, or its share of the node's memory.

    Where that differs, every rank gets as much besides its libraries as the one with least.
    """
    if world.device.type == "cuda":
        _, whole = torch.cuda.mem_get_info(world.device)
    else:
        whole = model.resources.memory_mb * 2**20 // model.resources.ranks
    room = torch.tensor(int(whole * (1 - FREE)) - libraries, device=world.device)
    dist.all_reduce(room, dist.ReduceOp.MIN)
    return int(room) + libraries


def activations(module: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Return the most bytes that tensors take while a batch goes through a model and back.

    The weights do not count, nor do the gradients of what is trained.
    """
    device = next(module.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    trained = [p for p in module.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(_forget_gradient) for p in trained]
    was_training = module.training
    cuda = [device] if device.type == "cuda" else []
    known = chain(module.parameters(), module.buffers(), batch.values())
    with torch.random.fork_rng(cuda), _Watch(known) as watch:
        module.train()
        loss, _ = AnswerLoss(module)(**batch)
        if loss.requires_grad:  # else there is no picture for the projector, which alone learns
            loss.backward()
    module.train(was_training)
    for hook in hooks:
        hook.remove()
    return watch.most + sum(tensor.nbytes for tensor in batch.values())


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Watch(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, and that are alive at a time."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Tensors `known` before do not count, whatever views of them are made."""
        super().__init__()
        self.alive = self.most = 0
        self.storages: dict[int, Any] = {t.untyped_storage()._cdata: None for t in known}

    def __torch_dispatch__(
        self, operation: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return

        def gone(_: Any) -> None:
            self.alive -= size
            del self.storages[key]

        self.storages[key] = weakref.ref(storage, gone)
        self.alive += size
        self.most = max(self.most, self.alive)


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f}"
