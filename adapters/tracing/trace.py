"""Run a model on indices and write down which tokens each of its attentions joined."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from mmattn.errors import MmattnError
from mmattn.interception.owner import module_paths, nearest_path, running_modules

from .contract import Seen
from .grids import MIXED, Grids
from .ids import Ids, Story, Undecided, compact, first, is_constant, make, mixed, plain, thin, told
from .mode import TraceMode
from .state import State

_TOKEN_NAMES = ("token", "cls", "probe", "latent", "quer", "class_emb", "register")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One attention of a trace.

    Parameters
    ----------
    module
        Path of the module that made it.
    query, key
        `[*lead, query]` and `[*lead, key]`, ids of the tokens that rows write to, and look at.
    forbidden
        Where a mask keeps a query from a key; None if nowhere.
    residual
        Whether its output was added to something: the residual stream runs beside it.
    folded
        Its output is summed over overlapping neighbourhoods, so its queries are its keys.

    """

    module: str
    query: Int[Tensor, "*lead query"]
    key: Int[Tensor, "*lead key"]
    forbidden: Bool[Tensor, "*lead query key"] | None = None
    residual: bool = False
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class LastMap:
    """The last feature map of a forward pass, where no sequence of tokens is made of it.

    Parameters
    ----------
    module
        Path of the module that gave it.
    channels
        The dimension of its channels.
    ids
        `[sample, place]`, row by row.

    """

    module: str
    channels: int
    ids: Int[Tensor, "sample place"]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All attentions of a forward pass on indices.

    Parameters
    ----------
    events
        In the order in which they ran.
    grids
        What the ids are.
    others
        Modules with attention of another kind, `linear` or `gate`; see `contract.Seen`.
    lost
        Torch functions after which tokens have no place, and how often they ran.
    stopped
        Why the model could not run to its end on indices; attention after that has no places.
    last_map
        None where patches are tokens to the end, or the last map's places are not a grid's.

    """

    events: tuple[Event, ...]
    grids: Grids
    others: dict[str, str]
    lost: dict[str, int]
    stopped: str = ""
    last_map: LastMap | None = None


def trace(model: nn.Module, *, shape: tuple[int, ...], call: Callable[[nn.Module, Tensor], Any]) -> Trace:
    """Run `model` on indices in place of a picture of some shape.

    Parameters
    ----------
    model
        Is not changed: a copy without hooks runs, on the CPU, which shares its weights where it can.
    shape
        `[sample, channel, row, col]` of the pixels.
    call
        Calls the model with them.

    """
    grids = Grids(samples=shape[0])
    pixels = grids.number(shape=shape[2:], cell=[1.0] * (len(shape) - 2), origin=[0.0] * (len(shape) - 2))
    count = grids.known[pixels].count
    ids = grids.ids(pixels, sample=torch.arange(shape[0])[:, None], index=torch.arange(count)[None])
    given = make(ids.reshape(shape[0], 1, *shape[2:]).to(torch.float64).expand(shape))
    try:
        twin = _twin(model)
    except Undecided as reason:
        return Trace(events=(), grids=grids, others={}, lost={}, stopped=str(reason))
    paths = [module_paths(twin)[0]]
    events: list[Event] = []
    others: dict[str, str] = {}
    stopped = ""

    def report(seen: Seen, story: Story) -> int:
        path = nearest_path(running_modules(paths), paths[0]) or ""
        if seen.kind != "token":
            others[path] = seen.kind
            return -1
        masked = None if seen.forbidden is None else compact(seen.forbidden)
        query = _landing(seen.query, seen.key)
        events.append(Event(module=path, query=compact(query), key=compact(seen.key), forbidden=masked))
        return len(events) - 1

    def residual(number: int) -> None:
        if number >= 0:  # learned weights that are contracted with tokens have no number
            events[number] = replace(events[number], residual=True)

    def folded(numbers: frozenset[int]) -> None:
        for number in numbers:
            assert number >= 0
            events[number] = replace(events[number], folded=True, query=events[number].key)

    state = State(grids=grids, roles=_roles(twin), attention=report, residual=residual, folded=folded)
    last = _last_output(twin)
    mode = TraceMode(state, buffers=frozenset(buffer.data_ptr() for buffer in twin.buffers() if buffer.numel()))
    before = _draws()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), mode:  # stochastic depth draws numbers
        try:
            call(twin, given)
        except MmattnError:
            raise
        except Exception as error:  # the model ran on pixels: what it cannot do with indices is our limit, and said
            stopped = str(error) if isinstance(error, Undecided) else f"{type(error).__name__}: {error}"
    if _draws() != before:
        _draws(back_to=before)
        events, stopped = [], "it draws random numbers outside of torch, and another pass draws others"
    found = None if stopped else _as_map(last, grids)
    return Trace(events=tuple(events), grids=grids, others=others, lost=state.lost, stopped=stopped, last_map=found)


def _last_output(model: nn.Module) -> dict[str, Tensor]:
    """Return what will hold the last output of any module that has several places, by its path; nothing else."""
    last: dict[str, Tensor] = {}

    def note(path: str) -> Callable[..., None]:
        def noted(module: nn.Module, args: Any, output: Any) -> None:
            several = isinstance(output, Ids) and (
                (output.dim() == 3 and output.shape[1] > 1)
                or (output.dim() == 4 and 1 not in (prod(output.shape[1:3]), prod(output.shape[2:])))
            )
            if several:
                last.clear()
                last[path] = output

        return noted

    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # these take no hooks
            module.register_forward_hook(note(path))
    return last


def _as_map(last: dict[str, Tensor], grids: Grids) -> LastMap | None:
    """Return an output as a map of a whole grid; None for sequences and for places that are something else."""
    for path, output in last.items():
        values = plain(output)
        for channels in (1, 3) if values.dim() == 4 else ():
            ids = first(values.select(channels, 0))
            if is_constant(values, [channels]) and grids.whole(ids) is not None:
                return LastMap(module=path, channels=channels, ids=compact(ids.flatten(1)))
    return None


def _draws(*, back_to: Any = None) -> Any:
    """Return the state of NumPy's random numbers, which tells whether any was drawn; or put it back."""
    if back_to is not None:
        np.random.set_state(("MT19937", np.array(back_to[0]), *back_to[1:]))
    _, keys, *rest = np.random.get_state()
    return (tuple(np.asarray(keys).tolist()), *rest)


def _landing(query: Int[Tensor, "*lead query"], key: Int[Tensor, "*lead key"]) -> Int[Tensor, "..."]:
    """Return the token that each row writes to.

    It is the token that asks, unless the same few ask in every window (GCViT's global queries): then
    row i of a window writes to the window's own token i.
    """
    if query.shape != key.shape:
        return query
    alone = torch.unique(thin(query))
    few = len(alone) < len(torch.unique(thin(key)))
    whole = int(alone.min()) > MIXED and len(torch.unique(query[(0,) * (query.dim() - 1)])) == query.shape[-1]
    return key if few and whole else query


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy of a model without its hooks that shares its weights; those on a device are brought here.

    Raises
    ------
    Undecided
        When it cannot be copied: its hooks would see indices, and what it keeps of a pass would be theirs.

    """
    shared = {id(tensor): _here(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    try:
        twin = copy.deepcopy(model, dict(shared))
    except Exception as error:  # modules may refuse in any way
        raise Undecided(f"its modules cannot be copied ({type(error).__name__}: {error})") from error
    for module in list(twin.modules()):
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        for name, child in module.named_children():
            if isinstance(child, torch.jit.ScriptModule):
                module._modules[name] = _Opaque(child)
    return twin


class _Opaque(nn.Module):
    """A compiled module in whose place tokens lose their places: no mode sees what runs inside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        """Run it for its shapes."""
        values = [torch.zeros(arg.shape) if isinstance(arg, Ids) else arg for arg in args]
        out = self.module(*values)
        if not isinstance(out, Tensor):
            raise Undecided("a compiled module gives more than a tensor, and what it does to tokens is not known")
        return mixed(out.shape, told(args))


def _here(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    copied = tensor.detach().cpu()
    return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied


def _roles(model: nn.Module) -> dict[int, str]:
    """Return what the learned tokens among the parameters are, by storage address."""
    roles = {}
    for path, parameter in model.named_parameters():
        name = path.rsplit(".", 1)[-1].lower()
        if parameter.numel() and any(part in name for part in _TOKEN_NAMES) and name not in ("weight", "bias"):
            role = role_of(name)
            if role == "cls" and parameter.shape[-2:-1] == (2,) and hasattr(model, "head_dist"):
                role = "cls distillation"  # timm 1.0's PiT keeps both in one parameter
            roles[parameter.untyped_storage().data_ptr()] = role
    return roles


def role_of(name: str) -> str:
    """Return the role of a learned token by its parameter's name."""
    for part, role in (
        ("cls", "cls"),
        ("class", "cls"),
        ("dist", "distillation"),
        ("reg", "register"),
        ("mask", "mask"),
    ):
        if part in name:
            return role
    return "query" if any(part in name for part in ("quer", "latent", "probe")) else "learned"
