"""What every adapter must hold, ours and third parties': DESIGN.md, "Adapter". Checked on a small example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from mmattn.interception import Recording, capture
from mmattn.interception.protocol import Adapter, MediaGiven, Prepared
from mmattn.schema.axes import Axis
from mmattn.schema.layers import AttentionLayer
from mmattn.schema.stream import apply, apply_transposed, received, statistics


@dataclass(frozen=True, kw_only=True)
class Example:
    """A small model, an input for it, and the same input with one cell changed.

    Parameters
    ----------
    model
        Builds it, in eval mode.
    media, processor
        What `prepare` gets.
    changed
        Given the media, the axis and a content token: the media with what lies at the token's place
        replaced by something else, and nothing beside it.
    """

    model: Callable[[], nn.Module]
    media: MediaGiven
    changed: Callable[[MediaGiven, Axis, int], MediaGiven]
    processor: Any = None


def recorded(adapter: Adapter, model: nn.Module, prepared: Prepared) -> tuple[Recording, Any]:
    """Run the prepared input under interception; return what was seen and the output."""
    with torch.no_grad(), capture(model, taps=(adapter.taps,)) as recording:
        output = prepared.run()
    return recording, output


def layers_of(adapter: Adapter, example: Example) -> tuple[AttentionLayer, ...]:
    """The example's layers, as `attend` makes them."""
    model = example.model()
    prepared = adapter.prepare(model, example.media, example.processor, None)
    recording, _ = recorded(adapter, model, prepared)
    layers = tuple(adapter.layers(recording.calls, prepared))
    assert layers
    return layers


def check_rows_sum_to_one(layer: AttentionLayer) -> None:
    """What a row gives to tokens and what it gives outside is one, where it is not empty."""
    for storage in layer.storages:
        sums = torch.cat([rows.weights.sum(dim=-1) for rows in storage.chunks()], dim=1)
        if layer.normalized == "over_keys":
            full = (sums - 1).abs() <= 1e-4
            assert bool((full | (sums.abs() <= 1e-6)).all())
            assert bool(full.any())
    if layer.normalized in ("over_keys", "over_keys_and_outside"):
        found = statistics(layer)
        total = apply(layer, torch.ones(len(layer.key_axis), 1), heads="each")[..., 0] + found.outside
        empty = torch.zeros(total.shape[-1], dtype=torch.bool) if found.empty is None else found.empty
        assert torch.allclose(total[:, ~empty], torch.ones_like(total[:, ~empty]), atol=1e-4)


def check_axes_are_as_long_as_the_weights(layer: AttentionLayer) -> None:
    """Every side of the dense weights has its axis."""
    weights = layer.weights()
    assert weights.shape[1:] == (len(layer.query_axis), len(layer.key_axis))
    assert layer.heads in (None, weights.shape[0])


def check_streaming_equals_dense(layer: AttentionLayer) -> None:
    """A x, x^T A and what each key receives, by rows and from the dense weights."""
    generator = torch.Generator().manual_seed(0)
    dense = layer.weights().mean(dim=0)
    x = torch.randn(len(layer.key_axis), 3, generator=generator)
    y = torch.randn(len(layer.query_axis), 3, generator=generator)
    assert torch.allclose(apply(layer, x), dense @ x, atol=1e-5)
    assert torch.allclose(apply_transposed(layer, y), dense.T @ y, atol=1e-5)
    assert torch.allclose(received(layer), dense.sum(dim=0), atol=1e-5)


def check_nothing_is_changed_or_left(adapter: Adapter, example: Example) -> None:
    """The output is that of a plain run, and afterwards no mode, hook or patched function is left."""
    model = example.model()
    prepared = adapter.prepare(model, example.media, example.processor, None)
    hooks = _hooks(model)
    functions = (F.scaled_dot_product_attention, F.softmax, F.multi_head_attention_forward, torch.matmul, torch.bmm)
    with torch.no_grad():
        plain = _tensors(prepared.run())
    _, output = recorded(adapter, model, prepared)
    for before, after in zip(plain, _tensors(output), strict=True):
        assert torch.allclose(before, after, atol=1e-5)
    assert not _get_current_function_mode_stack()
    assert _hooks(model) == hooks
    now = (F.scaled_dot_product_attention, F.softmax, F.multi_head_attention_forward, torch.matmul, torch.bmm)
    assert all(one is other for one, other in zip(functions, now, strict=True))


def check_places_by_perturbation(adapter: Adapter, example: Example, *, tokens: int = 3) -> None:
    """Changing what lies at a token's place moves that token's key at the first layer most of all."""
    model = example.model()

    def first_keys(media: MediaGiven) -> tuple[Tensor, AttentionLayer]:
        prepared = adapter.prepare(model, media, example.processor, None)
        recording, _ = recorded(adapter, model, prepared)
        layer = adapter.layers(recording.calls, prepared)[0]
        key = next(call for call in recording.calls if call.module == layer.name).k
        assert key is not None, "this check reads the keys of a fused call"
        return key, layer

    before, layer = first_keys(example.media)
    axis = layer.key[0]
    content = [int(token) for token in axis.content]
    for token in {content[0], content[len(content) // 2], content[-1], *content[:: max(1, len(content) // tokens)]}:
        after, moved_layer = first_keys(example.changed(example.media, axis, token))
        assert len(moved_layer.key[0]) == len(axis)
        moved = (after[0] - before[0]).abs().amax(dim=(0, -1))
        assert int(moved.argmax()) == token, f"token {token} at {axis.place(token)}"


def _hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in _tensors(part)]
    return _tensors(tuple(vars(output).values())) if hasattr(output, "__dict__") else []
