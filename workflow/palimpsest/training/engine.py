"""DeepSpeed ZeRO around a module: on GPUs with NCCL, on CPU ranks with gloo; one code path."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("DS_ACCELERATOR", "cuda" if os.path.exists("/dev/nvidiactl") else "cpu")

# Nothing is compiled here, but DeepSpeed's Muon would have the compiler imported: three seconds.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from palimpsest.config import Method, Model

Engine = deepspeed.DeepSpeedEngine
BUCKET = 5 * 10**8  # the largest of DeepSpeed's buckets for gradients, by its own default

# DeepSpeed calls collectives by their old names, and torch says so at each call.
warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)


@dataclass(frozen=True)
class World:
    """The ranks of a job, and how a global batch is shared out among them."""

    rank: int
    size: int
    device: torch.device
    micro_batch: int
    accumulation: int  # micro-batches a rank and step


def join(model: Model, batch: int) -> World:
    """Join the job's ranks; a process that `launch` did not start is a world of its own.

    Where `micro_batch` is `auto`, it is the largest until a stage knows what fits.

    Errors: ValueError if micro-batch x ranks x accumulation cannot give the global batch.
    """
    on_gpu = torch.cuda.is_available()
    # The compiled shared-memory kernel needs a C++ compiler on the machine; gloo does not.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if on_gpu else "gloo"
    if "RANK" not in os.environ:  # no port is needed to be alone
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        os.environ["LOCAL_RANK"] = "0"
    deepspeed.init_distributed(backend, verbose=False)
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    micro = model.micro_batches_of(batch, size)[0]
    return World(rank, size, torch.device(device), micro, batch // (micro * size))


def start(
    module: nn.Module, model: Model, method: Method, world: World, schedule: Callable[[int], float]
) -> Engine:
    """Shard a module and its optimiser over the ranks as the model's config asks for."""
    training = method.training
    optimiser = torch.optim.AdamW(
        _trained(module, model, training.projector_learning_rate),
        lr=training.learning_rate,
        betas=training.betas,
        weight_decay=training.weight_decay,
    )
    settings = {
        "train_micro_batch_size_per_gpu": world.micro_batch,
        "gradient_accumulation_steps": world.accumulation,
        "gradient_clipping": training.gradient_clip,
        "zero_optimization": {"stage": model.zero_stage, "reduce_bucket_size": _bucket(module)},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimiser,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimiser, schedule),
        config=settings,
        dist_init_required=False,
    )
    return engine


def _bucket(module: nn.Module) -> int:
    """Return how many gradients ZeRO shares out at a time: not room for 2 GB where few are."""
    return min(BUCKET, sum(p.numel() for p in module.parameters() if p.requires_grad))


def _trained(module: nn.Module, model: Model, projector_rate: float | None) -> list:
    """Return what the optimiser is to change: the projector apart where it has its own rate."""
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if projector_rate is None:
        return list(trained.values())
    of_projector = [n for n in trained if f".{model.projector}." in n]
    own = {"params": [trained.pop(name) for name in of_projector], "lr": projector_rate}
    return [{"params": list(trained.values())}, own]


def gather(
    module: nn.Module, zero_stage: int, owned: Callable[[str], bool]
) -> dict[str, torch.Tensor]:
    """Return the parameters that are trained or `owned`, whole, on the CPU, on every rank."""
    found = {n: p for n, p in module.named_parameters() if p.requires_grad or owned(n)}
    with deepspeed.zero.GatheredParameters(list(found.values()), enabled=zero_stage == 3):
        return {name: p.detach().float().cpu().clone() for name, p in found.items()}


def leave() -> None:
    """Leave the job's ranks."""
    dist.destroy_process_group()
