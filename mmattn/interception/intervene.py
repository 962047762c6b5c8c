"""intervene(): write attention weights where they meet the value, at the same point where they are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fnmatch import fnmatchcase

from torch import Tensor, nn

from mmattn.errors import InputError, NotFoundError, nearest
from mmattn.interception.calls import Call, Tap
from mmattn.interception.mode import checked_edit, detached, kept_from_operators
from mmattn.interception.refuse import refuse_checkpointed_edit, refuse_empty, refuse_unreadable
from mmattn.interception.watch import ModelWatcher

Edit = Callable[[Tensor, Call], Tensor | None]
Layers = str | Sequence[str] | Callable[[str], bool] | None


class _Writer(ModelWatcher):
    """Hands the weights of the chosen layers to an edit."""

    writes = True

    def __init__(self, model: nn.Module, edit: Edit, layers: Layers) -> None:
        super().__init__(model)
        self.change = edit
        self.layers = (layers,) if isinstance(layers, str) else layers
        self.chosen: dict[str, bool] = {}

    def selects(self, path: str) -> bool:
        """Whether `layers` names that module, or one that holds it."""
        if path not in self.chosen:
            self.chosen[path] = self._selects(path)
        return self.chosen[path]

    def edit(self, weights: Tensor, call: Call) -> Tensor | None:
        """Return what the user's function makes of the weights."""
        with kept_from_operators(f"The edit of {call.module or 'the root module'}"):
            return self.change(weights, call)

    def emit(self, call: Call) -> Tensor | None:
        """Edit a call that a tap saw; the tap uses what comes back in place of its weights."""
        numbered = self.number(call, call.module)
        self.counted(call.module)
        if call.weights is None or not self.selects(call.module):
            return None
        refuse_checkpointed_edit(call.module)
        return checked_edit(self.edit(call.weights, detached(numbered)), like=call.weights, path=call.module)

    def require_modules(self) -> None:
        """Raise for a name that no module has."""
        if self.layers is None or callable(self.layers):
            return
        if not self.layers:
            raise InputError(
                "layers=[] names no layer, so nothing would be edited. layers is a path, several, or a function of the "
                "path. Pass layers=None to edit every layer."
            )
        known = [path for path in self.paths.values() if path]
        named = self._attention_paths()
        for name in self.layers:
            if not any(_holds(name, path) for path in self.paths.values()):
                listed = "Its attention layers are" if named else "No class in it is named *Attention; its modules are"
                raise NotFoundError(
                    f"The model has no module {name!r} to edit. {listed}: "
                    f"{nearest(name, named or known)}. Pass one of these paths in layers=."
                )

    def require_edits(self) -> None:
        """Raise for a block in which no call was one of the chosen layers'."""
        if any(self.chosen.values()) or not self.called:
            return
        asked = "the predicate" if callable(self.layers) else ", ".join(self.layers or ())
        seen = [path or "the model itself" for path in self.called]
        raise NotFoundError(
            f"No attention of the layers asked for ({asked}) was seen. Attention was seen in: "
            f"{nearest('', seen)}. Pass one of these paths in layers=."
        )

    def _selects(self, path: str) -> bool:
        if self.layers is None:
            return True
        if callable(self.layers):
            return bool(self.layers(path))
        return any(_holds(name, path) for name in self.layers)

    def _attention_paths(self) -> list[str]:
        return [path for module in self.attentions if (path := self.paths[id(module)])]


def intervene(
    model: nn.Module, edit: Edit, *, layers: Layers = None, taps: Sequence[Tap] = ()
) -> AbstractContextManager[None]:
    """Return a context in which the attention weights of `model` pass through `edit` before they are used.

    `edit(weights, call)` gets the weights `[..., query, key]` at the point where they meet the value, after
    head mixing, as part of the computation graph; what it returns is used in their place (then dropped out,
    where the call drops out). None leaves the call as it is: the fused kernel runs. Several interventions
    apply in the order in which they were opened; a capture inside or around sees the edited weights.

    Parameters
    ----------
    model
        Any module; paths are relative to it.
    edit
        Returns a tensor of the same shape, or None.
    layers
        Which modules' calls: a path, several, with `*` and `?` as in file names (a path stands also for all
        that lies in it), or a function of the path. All by default.
    taps
        Extra points of interception; `emit` returns the weights that a tap should use, or None.

    Raises
    ------
    NotFoundError
        A layer that the model does not have, or (at the end of the block) of which no attention was seen.
    InputError
        The edit returned another shape, or raised a TypeError: from inside `@` torch would lose it.
    ModelError
        Under activation checkpointing with gradients on, whose backward pass would not see the edit.
    NoAttentionError
        As for `capture`.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    >>> def uniform(weights, call):
    ...     return torch.full_like(weights, 1 / weights.shape[-1])
    >>> with intervene(layer, uniform):
    ...     output = layer(torch.randn(1, 5, 8))
    """
    refuse_unreadable(model)
    writer = _Writer(model, edit, layers)
    writer.require_modules()
    return _intervening(model, writer, taps)


@contextmanager
def _intervening(model: nn.Module, writer: _Writer, taps: Sequence[Tap]) -> Iterator[None]:
    with writer.installed(), ExitStack() as stack:
        for tap in taps:
            stack.enter_context(tap(model, writer.emit))
        yield
    if not writer.called:
        refuse_empty(model, passes=writer.passes, ran=writer.unseen(), elsewhere=writer.elsewhere)
    writer.require_edits()


def _holds(name: str, path: str) -> bool:
    if name == path or not name or path.startswith(name + "."):
        return True
    return any(sign in name for sign in "*?[") and (fnmatchcase(path, name) or fnmatchcase(path, name + ".*"))
