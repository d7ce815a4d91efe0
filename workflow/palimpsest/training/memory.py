"""How much memory a stage will take on a rank, with the arithmetic, before it starts."""

from __future__ import annotations

from palimpsest.config import Model
from palimpsest.methods.regulariser import Regulariser
from palimpsest.models.lmm import LMM
from palimpsest.training.engine import World

TOKEN_PER_CHARACTER = 0.5  # a cautious bound; an English token has about four characters


def estimate(
    lmm: LMM, model: Model, world: World, longest: int, regulariser: Regulariser | None = None
) -> str:
    """Return the estimate as text: weights, optimiser and activations of one rank.

    `longest` is the length of the longest conversation in characters; a `regulariser` is one that
    has something to hold on to.
    """
    parameters = list(lmm.module.parameters())
    frozen = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    shards = dict.fromkeys(range(1, model.zero_stage + 1), world.size)
    frozen //= shards.get(3, 1)
    weights = trained * 4 // shards.get(3, 1)
    gradients = trained * 4 // shards.get(2, 1)
    adam = trained * 12 // shards.get(1, 1)  # two moments and the fp32 master copy

    text = lmm.module.config.get_text_config()
    tokens = min(model.max_length, int(longest * TOKEN_PER_CHARACTER) + lmm.image_length)
    # Kept for the backward pass, a token and layer: inputs of norms, q, k, v, attention's output,
    # and of the gated MLP its input, gate, up and their product.
    wide = text.ffn_dim if text.model_type == "opt" else text.intermediate_size
    kept = 8 * text.hidden_size + 4 * wide
    width = 4 if model.precision == "fp32" else 2
    activations = world.micro_batch * tokens * text.num_hidden_layers * kept * width
    held = trained * regulariser.bytes_held if regulariser else 0  # whole on every rank
    total = frozen + weights + gradients + adam + held + activations
    holding = f"{regulariser.settings.name} {_mib(held)} + " if regulariser else ""
    return (
        f"memory of a rank, estimated: {_mib(total)} = frozen {_mib(frozen)} + trained "
        f"{_mib(weights)} + gradients {_mib(gradients)} + Adam {_mib(adam)} + {holding}activations "
        f"{_mib(activations)} ({world.micro_batch} examples x {tokens} tokens x "
        f"{text.num_hidden_layers} layers x {kept} values x {width} bytes), besides libraries"
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
