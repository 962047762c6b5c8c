"""A tower opened in front of a block, without being cut up: a hook there makes the tokens a leaf.

The whole tower runs as it is. What enters the block is replaced by the same numbers (or by others) from
which a graph begins, so that gradients of the features end at the tokens of that block. The block is the
outermost numbered module around a self-attention (the tower's last, if no other is asked for) whose input is one
vector for each of its tokens; nothing passes it by. A tower whose patches are a feature map of convolutions is
opened behind the module that gives it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.analysis.matching.spots import Spot, changed_at
from mmattn.analysis.matching.towers import Run, Tower
from mmattn.errors import ModelError, NotFoundError
from mmattn.interception.feature_maps import FeatureMap
from mmattn.schema.layers import AttentionLayer


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
    spot
        In front of the block, or behind the module that gives the feature map.
    run
        The run in which it was found.
    """

    spot: Spot
    run: Opened

    @property
    def tokens(self) -> Float[Tensor, "sample *token width"]:
        """What stands there, `[sample, ..., width]`: as many vectors as the axis has tokens."""
        return self.run.tokens.detach()


def find_cut(model: nn.Module, tower: Tower, *, block: int = -1) -> Cut:
    """Return the last block of a tower (or another, by its number), with what enters it; or its feature map.

    Raises
    ------
    ModelError
        The block cannot be told: no module in a list around its attention takes the tokens.
    NotFoundError
        The tower has not so many blocks.
    """
    if tower.map is not None:
        return _behind_map(model, tower, tower.map, block)
    samples, counts = len(tower.features), tower.counts
    attention = tower.around(block).name
    candidates = _numbered(model, attention)
    found: dict[str, Tensor] = {}

    def enters(path: str) -> Callable[[Tensor], Tensor | None]:
        def enter(given: Tensor) -> Tensor | None:
            if found or not _holds_tokens(given, samples, counts):
                return None
            found[path] = _leaf(given)
            return found[path].clone()  # the block may write into what it gets, but not into a leaf

        return enter

    with torch.enable_grad(), _all({Spot(path=p, module=b): enters(p) for p, b in candidates.items()}):
        features = tower.run()
    if not found:
        raise _untold(model, tower, attention, candidates)
    (path, leaf), *_ = found.items()
    return Cut(spot=Spot(path=path, module=candidates[path]), run=Opened(features=features, tokens=leaf))


def blocks_of(model: nn.Module, tower: Tower, *, most: int | None = None) -> dict[AttentionLayer, Spot]:
    """Return the block of each self-attention on the tower's last tokens, lowest first: one attention a block.

    Parameters
    ----------
    most
        Of so many, from the tower's end.

    Raises
    ------
    ModelError
        The block of one cannot be told.
    NotFoundError
        The tower has not so many blocks.
    """
    layers = tower.alike if most is None else tower.alike[-most:]
    tower.around(-len(layers) if most is None else -most)
    around = {layer: _numbered(model, layer.name) for layer in layers}
    watched = {path: block for one in around.values() for path, block in one.items()}
    took: set[str] = set()

    def enters(path: str) -> Callable[[Tensor], Tensor | None]:
        def enter(given: Tensor) -> Tensor | None:
            if _holds_tokens(given, len(tower.features), tower.counts):
                took.add(path)
            return None

        return enter

    with torch.no_grad(), _all({Spot(path=p, module=b): enters(p) for p, b in watched.items()}):
        tower.run()
    found: dict[AttentionLayer, Spot] = {}
    for layer, candidates in around.items():
        own = [p for p in candidates if p in took and sum(p in other for other in around.values()) == 1]
        if not own:
            raise _untold(model, tower, layer.name, candidates)
        found[layer] = Spot(path=own[0], module=candidates[own[0]])
    return found


def entering(cut: Cut, run: Run) -> Float[Tensor, "sample *token width"]:
    """Return what stands at the cut in another run (of a black picture, a blank text)."""
    seen: list[Tensor] = []

    with torch.no_grad(), changed_at(cut.spot, seen.append):
        run()
    _once(cut.spot, len(seen))
    return seen[0].detach()


def opened(cut: Cut, run: Run, *, tokens: Float[Tensor, "sample *token width"]) -> Opened:
    """Run a tower with these tokens at the cut, where the graph begins."""
    leaf = _leaf(tokens)
    entered: list[Tensor] = []

    def enter(given: Tensor) -> Tensor:
        entered.append(given)
        return leaf.clone()

    with torch.enable_grad(), changed_at(cut.spot, enter):
        features = run()
    _once(cut.spot, len(entered))
    return Opened(features=features, tokens=leaf)


def in_blocks(tower: Tower) -> bool:
    """Whether the tower's last attention stands in a list of modules, as blocks do."""
    return any(part.isdigit() for part in tower.last.name.split("."))


def _behind_map(model: nn.Module, tower: Tower, found: FeatureMap, block: int) -> Cut:
    if block not in (-1, 0):
        raise NotFoundError(
            f"The {tower.stream} tower of {type(model).__name__} is read from its last feature map, behind which there "
            f"are no blocks, and {abs(block)} were asked for. Pass blocks=1, or leave it out."
        )
    spot = Spot(path=found.module, module=model.get_submodule(found.module), behind=True, channels=found.channels)
    leaves: list[Tensor] = []

    def enter(given: Tensor) -> Tensor:
        leaves.append(_leaf(given))
        return leaves[-1].clone()

    with torch.enable_grad(), changed_at(spot, enter):
        features = tower.run()
    _once(spot, len(leaves))
    return Cut(spot=spot, run=Opened(features=features, tokens=leaves[0]))


def _leaf(tokens: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return tokens.detach().clone().requires_grad_()


def _holds_tokens(given: Tensor, samples: int, counts: tuple[int, ...]) -> bool:
    return given.dim() >= 3 and len(given) == samples and given.shape[1:-1].numel() in counts


def _once(spot: Spot, times: int) -> None:
    if times != 1:
        raise ModelError(
            f"{spot.path} ran {times} times in one pass. A block of a tower runs once. "
            'Use method="chefer", which needs the attention alone.'
        )


def _untold(model: nn.Module, tower: Tower, attention: str, candidates: Mapping[str, nn.Module]) -> ModelError:
    return ModelError(
        f"The block around {attention} of the {tower.stream} tower of {type(model).__name__} cannot be told: of the "
        f"numbered modules that hold it ({', '.join(candidates) or 'none'}) none takes {len(tower.axes[0])} tokens. "
        'This method starts there. Use method="chefer", which needs the attention alone.'
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
def _all(watched: Mapping[Spot, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for spot, change in watched.items():
            stack.enter_context(changed_at(spot, change))
        yield
