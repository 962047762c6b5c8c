"""What an adapter may have beside `Adapter` where a model writes texts: it writes, and its words have an axis."""

from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from mmattn.interception.protocol import Prepared

# How a model writes: each pass of its own `forward` is a step behind a cache, or it is asked anew for each token (by a
# loop around parts of it, without a cache); None: it writes nothing.
Way = Literal["steps", "anew"]


@runtime_checkable
class Writes(Protocol):
    """A model that writes token by token, greedily, behind an input that was prepared.

    Steps are seen while it writes, and joined (`mmattn.interception.steps`); a model that is asked anew has all of its
    attention in one pass over what it wrote. `layers` gets both alike, with what `continued` returned.
    """

    def writes(self, model: nn.Module) -> Way | None:
        """How this model writes texts; None where it writes none."""
        ...

    def write(self, model: nn.Module, prepared: Prepared, count: int) -> Tensor:
        """Let the model write up to `count` tokens; return them, `[sample, token]`.

        Each was given to the model once more, so that it has asked as well; a sample that ended sooner is padded.
        """
        ...

    def continued(self, model: nn.Module, prepared: Prepared, written: Tensor) -> Prepared:
        """Return the input with what was written behind it.

        Its `run` runs the whole sequence in one pass; its axes end in the written tokens, as the part `answer` of a
        joined axis, or as the tokens of a text that had none before.
        """
        ...
