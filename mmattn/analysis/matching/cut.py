"""A tower opened in front of a block, without being cut up: a hook there makes the tokens a leaf.

The whole tower runs as it is. What enters the block is replaced by the same numbers (or by others) from
which a graph begins, so that gradients of the features end at the tokens of that block. The block is the
outermost numbered module around a self-attention (the tower's last, if no other is asked for) whose input is one
vector for each of its tokens; nothing passes it by.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.analysis.matching.towers import Run, Tower
from mmattn.errors import ModelError

Entry = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A run whose graph begins at the tokens that enter a block."""

    features: Float[Tensor, "sample feature"]
    tokens: Float[Tensor, "sample *token width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Where a tower is opened.

    Parameters
    ----------
    path, block
        The block.
    run
        The run in which it was found.
    """

    path: str
    block: nn.Module
    run: Opened

    @property
    def tokens(self) -> Float[Tensor, "sample *token width"]:
        """What enters the block, `[sample, ..., width]`: as many vectors as the axis has tokens."""
        return self.run.tokens.detach()


def find_cut(model: nn.Module, tower: Tower, *, block: int = -1) -> Cut:
    """Return the last block of a tower (or another, by its number), with what enters it.

    Raises
    ------
    ModelError
        The block cannot be told: no module in a list around its attention takes the tokens.
    """
    count, samples = len(tower.axes[0]), len(tower.features)
    attention = tower.around(block).name
    candidates = _numbered(model, attention)
    found: dict[str, Tensor] = {}

    def enters(path: str) -> Callable[[Tensor], Tensor | None]:
        def enter(given: Tensor) -> Tensor | None:
            if found or given.dim() < 3 or len(given) != samples or given.shape[1:-1].numel() != count:
                return None
            found[path] = _leaf(given)
            return found[path].clone()  # the block may write into what it gets, but not into a leaf

        return enter

    with torch.enable_grad(), _all_entered({path: (block, enters(path)) for path, block in candidates.items()}):
        features = tower.run()
    if not found:
        named = ", ".join(candidates) or "none"
        raise ModelError(
            f"The {'last' if block == -1 else 'asked'} block of the {tower.stream} tower of {type(model).__name__} "
            f"cannot be told: of the numbered modules around {attention} ({named}) none takes {count} tokens. "
            'This method starts there. Use method="chefer", which needs the attention alone.'
        )
    (path, leaf), *_ = found.items()
    return Cut(path=path, block=candidates[path], run=Opened(features=features, tokens=leaf))


def entering(cut: Cut, run: Run) -> Float[Tensor, "sample *token width"]:
    """Return what enters the block in another run (of a black picture, a blank text)."""
    seen: list[Tensor] = []

    with torch.no_grad(), _all_entered({cut.path: (cut.block, seen.append)}):
        run()
    _once(cut, len(seen))
    return seen[0].detach()


def opened(cut: Cut, run: Run, *, tokens: Float[Tensor, "sample *token width"]) -> Opened:
    """Run a tower with these tokens at the entrance of the block, where the graph begins."""
    leaf = _leaf(tokens)
    entered: list[Tensor] = []

    def enter(given: Tensor) -> Tensor:
        entered.append(given)
        return leaf.clone()

    with torch.enable_grad(), _all_entered({cut.path: (cut.block, enter)}):
        features = run()
    _once(cut, len(entered))
    return Opened(features=features, tokens=leaf)


def _leaf(tokens: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return tokens.detach().clone().requires_grad_()


def _once(cut: Cut, times: int) -> None:
    if times != 1:
        raise ModelError(
            f"{cut.path} ran {times} times in one pass. A block of a tower runs once. "
            'Use method="chefer", which needs the attention alone.'
        )


def _numbered(model: nn.Module, path: str) -> dict[str, nn.Module]:
    """Return the members of lists of modules that hold a module, outermost first."""
    parts = path.split(".")
    found: dict[str, nn.Module] = {}
    for end in range(1, len(parts) + 1):
        if parts[end - 1].isdigit():
            inner = ".".join(parts[:end])
            found[inner] = model.get_submodule(inner)
    return found


@contextmanager
def _all_entered(watched: Mapping[str, tuple[nn.Module, Callable[[Tensor], Tensor | None]]]) -> Iterator[None]:
    """Hand what enters each block to its function; what that returns goes on in its place."""

    def hook(enter: Callable[[Tensor], Tensor | None]) -> Callable[..., Entry | None]:
        def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry | None:
            if args:
                changed = enter(args[0]) if isinstance(args[0], Tensor) else None
                return None if changed is None else ((changed, *args[1:]), kwargs)
            named = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
            changed = None if named is None else enter(kwargs[named])
            return None if named is None or changed is None else (args, {**kwargs, named: changed})

        return enters

    handles = [block.register_forward_pre_hook(hook(enter), with_kwargs=True) for block, enter in watched.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
