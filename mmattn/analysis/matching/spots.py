"""A spot in a running model: what enters a module, or what leaves it, as one vector for each token.

What a function makes of the tokens there goes on in their place. Tokens are always `[sample, ..., width]`: maps of
convolutions, whose channels stand before rows and columns, are turned round and back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

Tokens = Float[Tensor, "sample *token width"]
Change = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spot:
    """Where tokens are read and written.

    Parameters
    ----------
    path, module
        The module.
    behind
        What leaves it rather than what enters it.
    channels
        The dimension in which a token's numbers stand.
    """

    path: str
    module: nn.Module
    behind: bool = False
    channels: int = -1


@contextmanager
def changed_at(spot: Spot, change: Change) -> Iterator[None]:
    """Hand the tokens at a spot to a function; what it returns goes on in their place, None: as they are."""

    def changed(tokens: Tensor) -> Tensor | None:
        turned = tokens.movedim(spot.channels, -1)
        made = change(turned)
        return None if made is None else made.movedim(-1, spot.channels)

    handle = (
        spot.module.register_forward_hook(_leaving(changed))
        if spot.behind
        else spot.module.register_forward_pre_hook(_entering(changed), with_kwargs=True)
    )
    try:
        yield
    finally:
        handle.remove()


def _entering(change: Change) -> Callable[..., Any]:
    def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            made = change(args[0]) if isinstance(args[0], Tensor) else None
            return None if made is None else ((made, *args[1:]), kwargs)
        named = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
        made = None if named is None else change(kwargs[named])
        return None if named is None or made is None else (args, {**kwargs, named: made})

    return enters


def _leaving(change: Change) -> Callable[..., Any]:
    def leaves(module: nn.Module, given: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        made = change(first) if isinstance(first, Tensor) else None
        if made is None:
            return None
        return (made, *output[1:]) if isinstance(output, tuple) else made

    return leaves
