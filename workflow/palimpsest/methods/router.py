"""The interface of routers: which expert answers, when no question says its task.

Shapes: N examples, B questions, E and D the widths of a picture's and a text's query.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from palimpsest import methods
from palimpsest.methods import settings as s


@dataclass(frozen=True)
class Asked:
    """What a step asks in its training examples, and the words for what they are about."""

    queries: Mapping[str, Tensor]  # `image` q_NE, `instruction` q_ND
    keywords: Sequence[str]  # of each example, what its picture is about; "" if nobody says
    # By keyword and modality, the concepts that describe it; none if the method names no such file.
    described: Mapping[str, Mapping[str, Sequence[str]]]
    # Concepts of a modality as queries of it; None if the model does not know words for pictures.
    embedded: Callable[[str, Sequence[str]], Tensor | None]


class Routed(NamedTuple):
    """Where questions go."""

    ago_B: Tensor  # how long ago, in steps, that was learnt which they are sent to; 0: the newest
    told: dict[str, Tensor]  # a row a question: what the experts' `send` takes of those who look


class Router(ABC):
    """What sends questions to experts, each question by itself.

    `state` maps names to tensors on the CPU, of all that was learnt before; whoever trains saves
    it and gives it back to the next stage. The `experts` are the module that an adapter has put in
    the place of the model's projector.
    """

    aligned: ClassVar[bool] = False  # whether pictures are to be seen in a space that has words

    def __init__(self, settings: Any, state: Mapping[str, Tensor]) -> None:
        self.settings, self.state = settings, dict(state)

    @property
    def examples(self) -> int | None:
        """How many examples of a step it learns from, drawn at random.

        None: from all of them, and each is learnt `beside` what the router says of it.
        """
        return None

    @abstractmethod
    def learn(self, asked: Asked, seed: int) -> None:
        """Update `state` by a new step, before it is learnt by the experts."""

    @abstractmethod
    def route(self, queries: Mapping[str, Tensor]) -> Routed:
        """Return where questions go, by their queries `image` q_BE and `instruction` q_BD.

        The query of a picture that is not there is zeros.
        """

    def begin(self, experts: nn.Module, seed: int) -> None:  # noqa: B027 - most need nothing
        """Get experts ready to learn the newest step, before an engine shards them."""

    def beside(self, queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the model takes as inputs beside the pictures that it learns, a row each."""
        return {}

    def settle(
        self,
        experts: nn.Module,
        learnt: Mapping[str, Tensor],
        beside: Mapping[str, Tensor],
        seed: int,
    ) -> dict[str, Tensor]:
        """Update `state` when the newest step has been learnt; return what changes of the experts.

        `learnt` are their parameters by name, whole, on the CPU; `beside` is what they were told of
        the examples of the step, which come first in it.
        """
        return {}


def build(settings: s.Router, state: Mapping[str, Tensor]) -> Router:
    """Return the router of the given settings with the state that the stage before left.

    As with adapters it is the class of the settings' name in `methods/<name>.py`.
    """
    return getattr(methods.part(settings), type(settings).__name__)(settings, state)
