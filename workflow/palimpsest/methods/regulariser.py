"""The interface of regularisers: what protects the old while the new is learnt.

Shapes: B examples, L tokens, V vocabulary, S answer tokens of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from palimpsest import methods
from palimpsest.methods import settings as s


class Regulariser(ABC):
    """A penalty on the loss, and a state that is updated when a stage ends.

    `state` maps names to tensors on the CPU, of all that was learnt before; whoever trains saves
    it and gives it back to the next stage. `model` is always the plain model, with the adapter
    attached: its parameters' names are the same in every stage.
    """

    needs_importance: ClassVar[bool] = False  # whether `importance` and `remember` are called
    bytes_held: ClassVar[int]  # for each trained parameter, on the device, while it learns

    def __init__(self, settings: Any, state: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.state = dict(state)

    @abstractmethod
    def begin(self, model: nn.Module, similarities: Sequence[float]) -> None:
        """Get ready to learn; called once, and only if something has been learnt before.

        `model` is as the stage before left it, and on the device where it will learn. What is
        frozen in it may be kept, not copied: hand over a copy if an engine will shard it.
        `similarities` are of the task to come with each entry of the history, oldest first; empty
        unless the method asks for them.
        """

    @abstractmethod
    def penalty(
        self, model: nn.Module, logits_SV: Tensor, labels_BL: Tensor, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the penalty for a micro-batch, a scalar; called only after `begin`.

        It is on the scale of the mean loss per answer token. `logits_SV` are the model's own for
        the batch, with their graph; see `answers.logits`.
        """

    def importance(
        self, model: nn.Module, labels_BL: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return how much ONE example minds a change of each trained parameter, by name.

        Where `needs_importance`, and then of the model that has learnt, in evaluation mode.
        """
        raise NotImplementedError(f"{self.settings.name} needs no importance of parameters")

    def remember(self, importance: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Update `state` by the task just learnt; where `needs_importance`.

        `importance` is the mean over examples of the task and `weights` are what was trained,
        both by name, whole, on the CPU, in fp32. The weights are kept: hand over copies, which do
        not learn on with the model.
        """
        raise NotImplementedError(f"{self.settings.name} remembers nothing of a task")


def build(settings: s.Regulariser, state: Mapping[str, Tensor]) -> Regulariser:
    """Return the regulariser of the given settings with the state that the stage before left.

    As with adapters it is the class of the settings' name in `methods/<name>.py`.
    """
    return getattr(methods.part(settings), type(settings).__name__)(settings, state)
