"""What a model would do with pixels of some shape, found out without computing.

Its forward pass runs on torch's meta device, where tensors have shapes and no numbers. A size that
the model cannot take fails there as it would for real, and every attention is seen. It takes about
0.1 s, for the largest models too, and the model itself is not touched.
"""

import copy
import re
import textwrap
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmattn.errors import InputError, MmattnError, ModelError, NoAttentionError
from mmattn.interception import Call, Recording, capture

from ..pixels import Size
from .checkpoints import reason
from .layouts import PictureFacts, trace_of
from .pictures import CallModel, Explain

# Sides of inputs that models are built for.
_SIDES = (224, 256, 384, 192, 160, 128, 112, 96, 64, 240, 288, 320, 336, 448, 512, 640, 768, 1024)

# Weights of one head in one call: at this many they take 1 GiB in single precision.
MOST_WEIGHTS = 16_384**2


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What happened on the meta device.

    Parameters
    ----------
    problem
        Why the forward pass failed; empty if it did not.
    attends
        For each attention call its module path, the module's class and the call's kind.
    unseen
        Paths of modules named attention that ran without one.
    weights
        The most weights of one head in one call.

    """

    problem: str = ""
    attends: tuple[tuple[str, str, str], ...] = ()
    unseen: tuple[str, ...] = ()
    weights: int = 0

    @property
    def places(self) -> bool:
        """Whether some attention is between tokens, as far as shapes can tell."""
        return any(kind == "token" for _, _, kind in self.attends)


# Of each model, what went well; what failed is tried anew, since a user may change a model's size.
_passed: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Rehearsal]]" = weakref.WeakKeyDictionary()


def rehearse(model: nn.Module, *, shape: tuple[int, ...], call: CallModel) -> Rehearsal:
    """Return what a forward pass with pixels [sample, channel, row, col] of some shape would do."""
    known = _passed.setdefault(model, {})
    if shape in known:
        return known[shape]
    recording: Recording | None = None
    try:
        twin = meta_twin(model)
        given = torch.empty(shape, device="meta", dtype=_dtype(model))
        with torch.no_grad(), capture(twin) as recording:
            call(twin, given)
    except NoAttentionError:
        if recording is None:
            return Rehearsal(problem="its attention cannot be seen")
    except Exception as problem:  # whatever a forward raises over a size
        return Rehearsal(problem=_why(problem))
    found = Rehearsal(
        attends=tuple(_attends(twin, recording.calls)),
        unseen=recording.unseen,
        weights=max(map(_weights, recording.calls), default=0),
    )
    known[shape] = found
    return found


def forget(model: nn.Module) -> None:
    """Forget what went well: the model was set to another size."""
    _passed.pop(model, None)


def meta_twin(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the meta device, in eval mode and without hooks; no weight is copied."""
    known: dict[int, Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        known[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    twin = copy.deepcopy(model, known)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin.eval()


def built_for(model: nn.Module, said_px: Size, *, channels: int, call: CallModel) -> Size:
    """Return (width, height) that a model was built for: what is said of it if it takes that, else found by trying."""
    tried = (said_px, *((side, side) for side in _SIDES))
    return next((size for size in tried if takes_size(model, size, channels=channels, call=call)), said_px)


def takes_size(model: nn.Module, size_px: Size, *, channels: int, call: CallModel) -> bool:
    """Whether a rehearsal with pixels of a size (width, height) goes well."""
    return not rehearse(model, shape=(1, channels, size_px[1], size_px[0]), call=call).problem


def check_size(
    model: nn.Module,
    size_px: Size,
    *,
    native_px: Size,
    unit_px: int,
    channels: int,
    call: CallModel,
    advice: Callable[[], str],
) -> Rehearsal | None:
    """Check that a model takes inputs of a size (width, height), by a rehearsal; return that, or None if none is had.

    Parameters
    ----------
    native_px, unit_px
        The size that the model was made for, and what sides of others would be multiples of.
    advice
        Says what may be done to have another size, as the end of a sentence; empty if nothing.

    Raises
    ------
    InputError
        It does not; the message says which sizes it takes. Or the attention of that size would not fit into memory.

    """
    found = rehearse(model, shape=(1, channels, size_px[1], size_px[0]), call=call)
    if not found.problem:
        if found.weights > MOST_WEIGHTS and size_px != native_px:
            raise InputError(
                f"With an input of {size_px[0]} x {size_px[1]} px {type(model).__name__} attends over "
                f"{found.weights:.1e} pairs of tokens a head, which does not fit into memory; at most "
                f"{MOST_WEIGHTS:.1e} are taken. Pass a smaller size_px (--size)."
            )
        return found
    width, height = (max(1, round(side / unit_px)) * unit_px for side in size_px)
    near = {(width, height), native_px}
    fit = [size for size in sorted(near - {size_px}) if takes_size(model, size, channels=channels, call=call)]
    if not fit:
        return None  # no rehearsal of this model is worth anything: the run will tell
    raise InputError(
        f"{type(model).__name__} cannot take inputs of {size_px[0]} x {size_px[1]} px: {found.problem}. It takes "
        f"{' or '.join(f'{wide} x {high}' for wide, high in fit)} px. Leave the size (and keep_aspect) out{advice()}."
    )


def explaining(size_px: Size, *, native_px: Size, advice: Callable[[], str]) -> Explain:
    """Return what makes a sentence of a forward pass that failed, which is nearly always over its size.

    Some sizes go well on the meta device and fail for real: an index that is out of range, say.
    """

    def explain(model: nn.Module, problem: Exception) -> MmattnError | None:
        fits = f"It takes {native_px[0]} x {native_px[1]} px. Leave the size (and keep_aspect) out{advice()}."
        built = "That is the size of its config. If it was built for another, pass that as size_px."
        return InputError(
            f"{type(model).__name__} cannot take inputs of {size_px[0]} x {size_px[1]} px: {_why(problem)}. "
            f"{built if size_px == native_px else fits}"
        )

    return explain


def attends(facts: PictureFacts) -> bool:
    """Whether some attention is of one token to another; where the trace stops, the run and the layers will say."""
    known = trace_of(facts)
    return bool(known.events or known.stopped)


def check_attends(found: Rehearsal, *, named: str) -> None:
    """Check that a rehearsal saw attention between tokens.

    Raises
    ------
    NoAttentionError
        It saw none: a convolutional network, say.
    ModelError
        It saw another kind.

    """
    if found.places:
        return
    use = "Use a model with token attention (`mmattn models` lists them)"
    if found.attends:
        raise ModelError(
            f"{named} attends between channels ({_some(path for path, _, _ in found.attends)}), so its weights have "
            f"no place in a picture. {use}, or see them with mmattn.capture."
        )
    if found.unseen:
        raise NoAttentionError(
            f"{named} has no token attention: {_some(found.unseen)} ran without weights between tokens, as linear "
            f"attention and gates do. {use}."
        )
    raise NoAttentionError(
        f"{named} has no attention: nothing in it weighs one token against others, as in convolutional networks, MLPs "
        f"and linear attention without a softmax. {use}, or ask a gradient method (a class activation map) about "
        "this one."
    )


def refuse_linear(found: Rehearsal | None, *, named: str) -> ModelError:
    """Return the error for a model all of whose attention sums its keys up before a query looks."""
    classes = dict.fromkeys(cls for _, cls, kind in found.attends if kind == "token") if found else {}
    return ModelError(
        f"{named} has no attention of one token to another: {_some(classes) or 'what it has'} sums its keys up before "
        "any query looks (linear attention, a global context), so its weights have no place to look from. Use a model "
        "with token attention (`mmattn models` lists them), or see them with mmattn.capture."
    )


def _why(problem: Exception) -> str:
    """Return the first sentences of another library's error, as many as are short."""
    if not str(problem).strip():
        return f"a check of its own failed ({type(problem).__name__})"
    whole, *more = re.split(r"(?<=[.!;])\s", reason(problem, most=200))
    for sentence in more:
        if len(whole) + len(sentence) < 80:
            whole = f"{whole} {sentence}"
    return textwrap.shorten(whole, width=120, placeholder="").rstrip(".!; ")


def _some(names: Iterable[str], *, most: int = 3) -> str:
    known = list(dict.fromkeys(names))
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _attends(model: nn.Module, calls: Iterable[Call]) -> Iterable[tuple[str, str, str]]:
    modules = dict(model.named_modules())
    for call in calls:
        yield call.module, type(modules.get(call.module)).__name__, call.kind


def _weights(call: Call) -> int:
    """Return how many weights one head has, over all windows."""
    rows = call.q if call.q is not None else call.weights
    if rows is None or not rows.numel():
        return 0
    heads = call.head_count or (rows.shape[-3] if rows.ndim > 3 else 1)
    keys = call.k.shape[-2] if call.k is not None else rows.shape[-1]
    return int(rows.numel() // rows.shape[-1] // heads * keys)
