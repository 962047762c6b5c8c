"""DINOv2 out of ONNX: real weights against the graph that they came from, and files that are something else."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file
from torch import nn
from weights import real_weights

from mmattn.adapters.vit.dinov2_onnx import as_safetensors, state_dict
from mmattn.errors import FormatError, OutputError

EMBEDDED = "/backbone/embeddings/Add_output_0"  # class token and patches, positions added
DIM, PATCH = 8, 2


@pytest.fixture(scope="module")
def source() -> Path:
    return real_weights("dinov2-small")


@pytest.fixture(scope="module")
def model(source: Path) -> nn.Module:
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, dynamic_img_size=True)
    model.load_state_dict(load_file(as_safetensors(source)), strict=True)
    return model.eval()


def test_real_features_are_those_of_the_onnx_graph_itself(source: Path, model: nn.Module) -> None:
    """The whole encoder, from the embedded patches to the last norm, run by ONNX's own reference."""
    image = torch.randn(1, 3, 70, 98, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedded = model._pos_embed(model.patch_embed(image))
        ours = embedded
        for block in model.blocks:
            ours = block(ours)
        ours = model.norm(ours).numpy()
    (theirs,) = ReferenceEvaluator(_encoder(source)).run(None, {EMBEDDED: embedded.numpy()})
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] >= 0.9999


def test_at_518_px_every_patch_gets_the_place_of_its_own(source: Path, model: nn.Module) -> None:
    image = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(1))
    named = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(str(source), load_external_data=False).graph.initializer
    }
    kernel = named["backbone.embeddings.patch_embeddings.projection.weight"].reshape(384, -1)
    cut = image.numpy().reshape(3, 37, 14, 37, 14).transpose(1, 3, 0, 2, 4).reshape(1369, -1)
    patches = cut @ kernel.T + named["backbone.embeddings.patch_embeddings.projection.bias"]
    expected = np.concatenate([named["backbone.embeddings.cls_token"][0], patches])
    expected += np.concatenate([named["onnx::Concat_1957"][0], named["onnx::Reshape_1962"][0]])
    with torch.no_grad():
        ours = model._pos_embed(model.patch_embed(image))[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_any_multiple_of_fourteen_is_taken(model: nn.Module) -> None:
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 3, 14 * 3, 14 * 5)).shape == (1, 1 + 15, 384)
    assert model.pos_embed.shape == (1, 1 + 37 * 37, 384)


def test_real_weights_are_converted_once(source: Path, model: nn.Module) -> None:
    target = as_safetensors(source)
    before = target.stat().st_mtime_ns
    assert as_safetensors(source) == target
    assert target.stat().st_mtime_ns == before


def _encoder(source: Path) -> onnx.ModelProto:
    """Cut out what lies between the embedded patches and the last norm."""
    whole = onnx.load(str(source), load_external_data=False)
    (end,) = (node.output[0] for node in whole.graph.node if "backbone.layernorm.bias" in node.input)
    needed, nodes = {end}, []
    for node in reversed(whole.graph.node):
        if needed & set(node.output) and EMBEDDED not in node.output:
            nodes.insert(0, node)
            needed |= set(node.input)
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(EMBEDDED, TensorProto.FLOAT, ["batch", "token", 384])],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, None)],
        [tensor for tensor in whole.graph.initializer if tensor.name in needed],
    )
    return helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)


# Small graphs of the same form, to be bent out of shape.


def tiny() -> dict[str, np.ndarray]:
    """One layer of width 8, under the names of an export; linear weights as they come from Hugging Face."""
    rng = np.random.default_rng(0)
    layer = "backbone.encoder.layer.0."
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.embeddings.cls_token": (1, 1, DIM),
        "backbone.embeddings.patch_embeddings.projection.weight": (DIM, 3, PATCH, PATCH),
        "backbone.embeddings.patch_embeddings.projection.bias": (DIM,),
        "onnx::Concat_1": (1, 1, DIM),
        "onnx::Reshape_2": (1, 9, DIM),
        "backbone.layernorm.weight": (DIM,),
        "backbone.layernorm.bias": (DIM,),
        "decoder.conv.weight": (4, DIM, 1, 1),
    }
    for norm in ("norm1", "norm2"):
        shapes |= {f"{layer}{norm}.weight": (DIM,), f"{layer}{norm}.bias": (DIM,)}
    shapes |= {f"{layer}layer_scale{n}.lambda1": (DIM,) for n in (1, 2)}
    for part in ("key", "value", "query"):  # the order of the export
        shapes |= {
            f"{layer}attention.attention.{part}.{kind}": (DIM, DIM)[: 2 if kind == "weight" else 1]
            for kind in ("weight", "bias")
        }
    for part, (rows, columns) in {
        "attention.output.dense": (DIM, DIM),
        "mlp.fc1": (16, DIM),
        "mlp.fc2": (DIM, 16),
    }.items():
        shapes |= {f"{layer}{part}.weight": (rows, columns), f"{layer}{part}.bias": (rows,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(path: Path, arrays: dict[str, np.ndarray], *, bias_first: bool = True) -> Path:
    """Write arrays as an export does: a linear weight unnamed and transposed, its bias added after the product."""
    nodes, tensors = [], []
    for number, (name, array) in enumerate(arrays.items()):
        bias = name.removesuffix("weight") + "bias"
        if array.ndim == 2:
            unnamed = f"onnx::MatMul_{100 + number}"
            tensors.append(numpy_helper.from_array(np.ascontiguousarray(array.T), unnamed))
            nodes.append(helper.make_node("MatMul", [f"x{number}", unnamed], [f"p{number}"]))
            added = [bias, f"p{number}"] if bias_first else [f"p{number}", bias]
            nodes.append(helper.make_node("Add", added, [f"y{number}"]))
        else:
            tensors.append(numpy_helper.from_array(array, name))
    graph = helper.make_graph(nodes, "tiny", [], [], tensors)
    onnx.save(helper.make_model(graph), str(path))
    return path


@pytest.mark.parametrize("bias_first", [True, False])
def test_a_weight_is_found_by_the_bias_that_is_added_after_it(tmp_path: Path, bias_first: bool) -> None:
    arrays = tiny()
    ours = state_dict(write(tmp_path / "tiny.onnx", arrays, bias_first=bias_first))
    layer = "backbone.encoder.layer.0.attention.attention."
    for index, part in enumerate(("query", "key", "value")):
        rows = slice(index * DIM, (index + 1) * DIM)
        assert np.array_equal(ours["blocks.0.attn.qkv.weight"][rows], arrays[f"{layer}{part}.weight"])
        assert np.array_equal(ours["blocks.0.attn.qkv.bias"][rows], arrays[f"{layer}{part}.bias"])
    assert np.array_equal(ours["blocks.0.mlp.fc2.weight"], arrays["backbone.encoder.layer.0.mlp.fc2.weight"])
    assert np.array_equal(ours["pos_embed"][0, 1:], arrays["onnx::Reshape_2"][0])
    assert not [name for name in ours if "decoder" in name]


def without(name: str) -> dict[str, np.ndarray]:
    return {other: array for other, array in tiny().items() if name not in other}


def bent(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    return {**tiny(), name: array.astype(np.float32)}


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        (without("mlp.fc1.weight"), "fc1.weight' is missing"),
        (without("onnx::Reshape"), "position table' is missing"),
        (without("layer.0"), "layer.0.norm1.weight' is missing"),
        (bent("backbone.layernorm.weight", np.full(DIM, np.nan)), "holds NaN or infinite"),
        (bent("backbone.layernorm.weight", np.ones(DIM + 1)), "has the shape"),
        (bent("onnx::Reshape_2", np.ones((1, 9, DIM + 1))), "do not fit together"),
        (bent("onnx::Reshape_3", np.ones((1, 16, DIM))), "position table' is missing"),
        (
            bent("backbone.encoder.layer.0.attention.attention.key.weight", np.ones((DIM, DIM + 2))),
            "do not fit together",
        ),
    ],
)
def test_an_export_of_something_else_is_refused_by_name(
    tmp_path: Path, arrays: dict[str, np.ndarray], why: str
) -> None:
    with pytest.raises(FormatError, match=rf"^odd\.onnx is not DINOv2 as ONNX: .*{why}"):
        state_dict(write(tmp_path / "odd.onnx", arrays))


def test_what_is_no_onnx_is_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "tiny.onnx", tiny()).read_bytes()
    for content in (good[: len(good) // 2], b"\x80\x04pickle", b"", b"\xff" * 1000):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(FormatError, match=r"bad\.onnx is not DINOv2"):
            state_dict(tmp_path / "bad.onnx")


def test_numbers_that_lie_in_another_file_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 4 * DIM)
    path = write(tmp_path / "tiny.onnx", tiny())
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if t.name == "backbone.layernorm.bias")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FormatError, match=r"keeps 'backbone\.layernorm\.bias' in another file"):
        state_dict(path)


def test_a_damaged_conversion_is_made_again_and_a_changed_source_is_noticed(tmp_path: Path) -> None:
    source = write(tmp_path / "tiny.onnx", tiny())
    target = as_safetensors(source)
    whole = target.read_bytes()
    target.write_bytes(whole[:-1])
    assert as_safetensors(source).read_bytes() == whole
    write(source, bent("backbone.layernorm.weight", np.full(DIM, 7.0)))
    assert load_file(as_safetensors(source))["norm.weight"].tolist() == [7.0] * DIM
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".onnx", ".safetensors"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "tiny.onnx", tiny())
    (tmp_path / "tiny.safetensors").mkdir()  # in the way
    with pytest.raises(OutputError, match=r"cannot be written to .*tiny\.safetensors: Is a directory"):
        as_safetensors(source)
