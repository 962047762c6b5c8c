"""Places found by running on indices, against the formula written out and against gradients."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmattn.adapters.pixels import Geometry
from mmattn.adapters.tracing.trace import trace
from mmattn.adapters.vit.layouts import PictureFacts, left_out, picture_layers
from mmattn.interception import capture
from mmattn.schema.axes import PatchGrid, Slots
from mmattn.schema.layers import AttentionLayer


def layers_of(model: nn.Module, x: Float[Tensor, "sample channel row col"]) -> dict[str, AttentionLayer]:
    """The layers of a model that takes pixels, on pictures of the pixels' own size."""
    facts = facts_of(model, x)
    with torch.no_grad(), capture(model) as recording:
        model(x)
    return {layer.name: layer for layer in picture_layers(recording.calls, facts)}


def facts_of(model: nn.Module, x: Float[Tensor, "sample channel row col"]) -> PictureFacts:
    size = (int(x.shape[3]), int(x.shape[2]))
    call: Callable[[nn.Module, Tensor], Any] = lambda module, pixels: module(pixels)  # noqa: E731
    return PictureFacts(model=weakref.ref(model), geometries=(Geometry(size_px=size),), shape=tuple(x.shape), call=call)


def swin() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4)
    ).eval()


def test_keys_of_a_shifted_window_are_those_of_the_formula() -> None:
    model = swin()
    layer = layers_of(model, torch.rand(1, 3, 64, 64))["layers.0.blocks.1.attn"]
    axis = layer.query_axis
    assert isinstance(axis, PatchGrid)
    assert (axis.rows, axis.cols) == (16, 16)
    weights = layer.weights().mean(dim=0).numpy()
    for token in range(256):
        row, col = divmod(token, 16)
        # Rolled by half a window (2), cut into windows of 4; a window that wraps holds up to 4 regions.
        rolled = ((row - 2) % 16, (col - 2) % 16)
        expected = set()
        for other in range(256):
            r, c = (other // 16 - 2) % 16, (other % 16 - 2) % 16
            same_window = (r // 4, c // 4) == (rolled[0] // 4, rolled[1] // 4)
            wrapped = (row < 2, col < 2) == (other // 16 < 2, other % 16 < 2)
            if same_window and wrapped:
                expected.add(other)
        assert set(np.flatnonzero(weights[token] > 1e-20).tolist()) == expected


def test_patch_merging_gives_the_grid_of_its_blocks() -> None:
    found = layers_of(swin(), torch.rand(1, 3, 64, 64))
    axis = found["layers.1.blocks.0.attn"].key_axis
    assert isinstance(axis, PatchGrid)
    assert axis.place(9) == (8.0, 8.0, 16.0, 16.0)
    assert found["layers.1.blocks.0.attn"].key_axis is found["layers.1.blocks.1.attn"].query_axis


def test_samples_keep_to_themselves() -> None:
    model = swin()
    x = torch.rand(3, 3, 64, 64)
    both = layers_of(model, x)["layers.0.blocks.1.attn"]
    for index in range(3):
        alone = layers_of(model, x[index : index + 1])["layers.0.blocks.1.attn"]
        assert torch.allclose(both.sample(index).weights(), alone.weights(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("levit_128s", "stem", "stages.0.blocks.0.attn"),
        ("pit_ti_224", "patch_embed", "transformers.0.blocks.0.attn"),
        ("hiera_tiny_224", "patch_embed", "blocks.0.attn"),
        ("resnet50_clip", "stages", "head"),
    ],
)
def test_a_token_lies_in_the_middle_of_the_pixels_that_make_it(name: str, module: str, layer: str) -> None:
    """With equal positive weights the gradient of a token is symmetric about its own middle."""
    model = timm.create_model(name, pretrained=False).eval()
    axis = layers_of(model, torch.rand(1, 3, 224, 224))[layer].key_axis
    assert isinstance(axis, PatchGrid)
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.constant_(part.weight, 1.0 / part.weight[0].numel())
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_hook(lambda _, __, out: seen.append(out))
    x = torch.ones(1, 3, 224, 224, requires_grad=True)
    model(x)
    handle.remove()
    out = seen[0] if seen[0].dim() == 4 else seen[0].transpose(1, 2).unflatten(2, (axis.rows, axis.cols))
    row, col = axis.rows // 2, axis.cols // 2
    out[0, :, row, col].sum().backward()
    assert x.grad is not None
    mass = x.grad[0].abs().sum(dim=0).double()
    pixels = torch.arange(224) + 0.5
    y, z = float((mass.sum(1) * pixels).sum() / mass.sum()), float((mass.sum(0) * pixels).sum() / mass.sum())
    special = len(axis) - axis.rows * axis.cols
    x0, y0, x1, y1 = axis.place(int(np.flatnonzero(axis.cells == row * axis.cols + col)[0]))
    assert special in (0, 1)
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((z, y), abs=0.75)


def test_outlook_attention_rebuilds_what_the_module_gives() -> None:
    """VOLO sums overlapping windows: A v over the whole map is what comes out of the fold."""
    torch.manual_seed(0)
    model = timm.create_model("volo_d1_224", pretrained=False).eval()
    module = model.get_submodule("network.0.0.attn")
    values: list[Tensor] = []
    outputs: list[Tensor] = []
    handles = [
        module.v.register_forward_hook(lambda _, __, out: values.append(out)),  # type: ignore[union-attr]
        module.proj.register_forward_pre_hook(lambda _, given: outputs.append(given[0])),  # type: ignore[union-attr]
    ]
    layer = layers_of(model, torch.rand(1, 3, 224, 224))["network.0.0.attn"]
    for handle in handles:
        handle.remove()
    assert layer.normalized == "none"
    heads = layer.heads or 1
    v = values[0].reshape(28 * 28, heads, -1).permute(1, 0, 2)
    rebuilt = (layer.weights() @ v).permute(1, 0, 2).reshape(28, 28, -1)
    assert torch.allclose(rebuilt, outputs[0][0], atol=1e-5)


def test_global_queries_answer_for_the_tokens_of_each_window() -> None:
    """GCViT asks the same queries in every window; each row writes to its own token."""
    model = timm.create_model("gcvit_xxtiny", pretrained=False).eval()
    layer = layers_of(model, torch.rand(1, 3, 224, 224))["stages.0.blocks.1.attn"]
    assert layer.query_axis == layer.key_axis
    weights = layer.weights(queries=[0, 3135])[0]
    assert set(torch.nonzero(weights[0]).flatten().tolist()) == {row * 56 + col for row in range(7) for col in range(7)}
    assert float(weights[1].sum()) == pytest.approx(1.0, abs=1e-5)


def test_keys_outside_the_map_are_outside() -> None:
    """HaloNet looks beyond the edge of the map: that mass goes to no token."""
    model = timm.create_model("halonet26t", pretrained=False).eval()
    layer = layers_of(model, torch.rand(1, 3, 256, 256))["stages.2.1.self_attn"]
    assert layer.normalized == "over_keys_and_outside"
    inside = layer.weights().sum(dim=-1)
    assert float(inside.max()) <= 1 + 1e-5
    assert float(inside.min()) < 0.9


def test_keys_that_form_no_box_are_slots_with_the_reason() -> None:
    """NextViT pools runs of 16 tokens in reading order, which wrap round the end of a row."""
    model = timm.create_model("nextvit_small", pretrained=False).eval()
    found = layers_of(model, torch.rand(1, 3, 224, 224))
    strips = found["stages.1.blocks.3.e_mhsa"]
    assert isinstance(strips.key_axis, Slots)
    assert "no box" in strips.note
    assert isinstance(found["stages.3.blocks.2.e_mhsa"].key_axis, PatchGrid)


def test_what_is_no_token_attention_is_left_out_with_the_reason() -> None:
    for name, reason in (
        ("xcit_nano_12_p16_224", "between channels"),
        ("coat_lite_tiny", "linear attention"),
        ("gcresnet33ts", "a gate"),
    ):
        model = timm.create_model(name, pretrained=False).eval()
        size = model.pretrained_cfg["input_size"]
        x = torch.rand(1, *size)
        with torch.no_grad(), capture(model) as recording:
            model(x)
        phrases = left_out(recording.calls, facts_of(model, x))
        assert phrases
        assert all(reason in phrase for phrase in phrases)


def test_class_attention_joins_a_class_token_with_patches() -> None:
    model = timm.create_model("cait_xxs24_224", pretrained=False).eval()
    layer = layers_of(model, torch.rand(1, 3, 224, 224))["blocks_token_only.0.attn"]
    assert layer.query_axis.roles == ("cls",)
    assert layer.key_axis.roles[:2] == ("cls", "content")
    assert layer.residual == "identity"


def test_a_trace_changes_nothing_of_the_model() -> None:
    model = timm.create_model("levit_128s", pretrained=False, drop_path_rate=0.5).train()
    fired: list[int] = []
    handle = model.register_forward_hook(lambda *_: fired.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    state = torch.get_rng_state()
    trace(model, shape=(2, 3, 224, 224), call=lambda module, pixels: module(pixels))
    handle.remove()
    assert not fired
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert attributes == {path: set(vars(module)) for path, module in model.named_modules()}


def test_a_function_that_no_rule_knows_gives_no_places_and_never_wrong_ones() -> None:
    class Scrambled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 8, 8)
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            tokens = torch.fft.fft(tokens, dim=1).real.to(x.dtype)
            out: Tensor = self.attn(tokens, tokens, tokens)[0]
            return out

    layer = layers_of(Scrambled().eval(), torch.rand(1, 3, 32, 32))["attn"]
    assert isinstance(layer.key_axis, Slots)
    assert "cannot be placed" in layer.note


def test_two_grids_exchange_class_tokens() -> None:
    found = layers_of(timm.create_model("crossvit_9_240", pretrained=False).eval(), torch.rand(1, 3, 240, 240))
    small, large = found["blocks.0.blocks.0.0.attn"].key_axis, found["blocks.0.blocks.1.0.attn"].key_axis
    assert isinstance(small, PatchGrid)
    assert isinstance(large, PatchGrid)
    assert ((small.rows, small.cols), (large.rows, large.cols)) == ((20, 20), (14, 14))
    assert large.place(1) == pytest.approx((0, 0, 240 / 14, 240 / 14))
    fusion = found["blocks.0.fusion.0.attn"]
    assert fusion.query_axis.roles == ("cls",)
    assert (len(fusion.key_axis), fusion.key_axis.roles[0]) == (197, "cls")


def test_attention_after_a_step_that_indices_cannot_take_is_left_out_and_said() -> None:
    class Selective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 8, 8)
            self.early, self.late = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            tokens = tokens + self.early(tokens, tokens, tokens)[0]
            if float(tokens.max()) > 1e4:  # no feature of this model is that large; an index may be
                raise OverflowError("features of 1e4 and more")
            out: Tensor = self.late(tokens, tokens, tokens)[0]
            return out

    model, x = Selective().eval(), torch.rand(1, 3, 128, 128)
    with torch.no_grad(), capture(model) as recording:
        model(x)
    facts = facts_of(model, x)
    (layer,) = picture_layers(recording.calls, facts)
    assert layer.name == "early"
    (phrase,) = left_out(recording.calls, facts)
    assert phrase.startswith("late: ")
    assert "the model decides by values what it does next" in phrase


def test_a_setting_that_changes_is_traced_anew() -> None:
    model, x = swin(), torch.rand(1, 3, 64, 64)
    before = layers_of(model, x)["layers.0.blocks.0.attn"].weights(queries=[0])
    block = model.get_submodule("layers.0.blocks.0")
    block.shift_size = (2, 2)
    mask = model.get_submodule("layers.0.blocks.1").attn_mask
    block.attn_mask = mask
    after = layers_of(model, x)["layers.0.blocks.0.attn"].weights(queries=[0])
    assert set(torch.nonzero(before[0, 0] > 1e-20).flatten().tolist()) != set(
        torch.nonzero(after[0, 0] > 1e-20).flatten().tolist()
    )


def test_two_learned_tokens_of_one_parameter_are_told_apart() -> None:
    model = timm.create_model("pit_ti_distilled_224", pretrained=False).eval()
    layer = layers_of(model, torch.rand(1, 3, 224, 224))["transformers.2.blocks.3.attn"]
    assert layer.key_axis.roles[:3] == ("cls", "distillation", "content")


def test_a_model_that_cannot_be_copied_is_left_out_and_never_run_on_indices() -> None:
    class Uncopied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 8, 8)
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            raise TypeError("one of a kind")

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            out: Tensor = self.attn(tokens, tokens, tokens)[0]
            return out

    model, x = Uncopied().eval(), torch.rand(1, 3, 32, 32)
    fired: list[int] = []
    with torch.no_grad(), capture(model) as recording:
        model(x)
    model.register_forward_hook(lambda *_: fired.append(1))
    facts = facts_of(model, x)
    assert picture_layers(recording.calls, facts) == ()
    assert not fired
    (phrase,) = left_out(recording.calls, facts)
    assert "cannot be copied (TypeError: one of a kind)" in phrase
