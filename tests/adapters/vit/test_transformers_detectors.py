"""Detectors of transformers: DETR and its kin against their own eager softmaxes; deformable attention is refused."""

import functools
import json

import numpy as np
import pytest
import torch
import transformers as hf
from written_out import SoftmaxLog

import mmattn
from mmattn.adapters.vit.transformers import adapter
from mmattn.errors import ModelError
from mmattn.schema.axes import PatchGrid, Slots

PHOTO = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
KINDS = {
    "Detr": ("Model", "ForObjectDetection"),
    "ConditionalDetr": ("Model", "ForObjectDetection"),
    "DabDetr": ("ForObjectDetection",),
    "TableTransformer": ("ForObjectDetection",),
}
MEMBERS = [kind + head for kind, heads in KINDS.items() for head in heads]


@functools.cache
def detector(name, *, eager=False):
    kind = next(kind for kind in KINDS if name.startswith(kind) and name[len(kind) :] in KINDS[kind])
    torch.manual_seed(0)
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    config = getattr(hf, f"{kind}Config")(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32,
        hidden_size=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=7, init_std=0.3,
    )  # fmt: skip
    cls = getattr(hf, name)
    if not eager:
        return cls(config).eval()
    model = cls._from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(detector(name).state_dict())
    return model


def processor():
    return hf.DetrImageProcessor(size={"shortest_edge": 128, "longest_edge": 192})


@functools.cache
def maps_of(name):
    return mmattn.attend(detector(name), image=[PHOTO, PHOTO[::-1].copy()], processor=processor())


@pytest.mark.parametrize("name", MEMBERS)
def test_weights_are_the_softmaxes_that_the_library_ran(name):
    maps = maps_of(name)
    encoded = processor()(images=[PHOTO, PHOTO[::-1].copy()], return_tensors="pt")
    with torch.no_grad(), SoftmaxLog() as log:
        expected = detector(name, eager=True)(**encoded)
    assert len(maps.layers) == len(log.results) == 6
    assert not maps.left_out
    for layer, weights in zip(maps, log.results, strict=True):
        ours = torch.stack([layer.sample(number).weights() for number in range(2)])
        assert torch.allclose(ours, weights.reshape(ours.shape), atol=1e-5), layer.name
    part = "logits" if "logits" in expected else "last_hidden_state"
    assert torch.allclose(maps.rerun()[part], expected[part], atol=1e-4)


@pytest.mark.parametrize("name", MEMBERS)
def test_queries_ask_each_other_and_the_cells_of_the_encoder(name):
    maps = maps_of(name).samples[0]
    cells = maps.select(stream="vision")[-1].query_axis
    assert isinstance(cells, PatchGrid)
    assert (cells.rows, cells.cols, cells.size_px) == (6, 4, (90, 120))
    decoder = maps.select(stream="decoder")
    assert [layer.kind for layer in decoder] == ["self", "cross"] * 2
    for layer in decoder:
        assert isinstance(layer.query_axis, Slots)
        assert layer.key_axis is (cells if layer.kind == "cross" else layer.query_axis)
    looked = mmattn.look(maps, stream="decoder", kind="cross", query=3)
    assert looked.axis is cells
    assert float(looked.values.sum()) == pytest.approx(1, abs=1e-4)


def test_light_reaches_the_cell_that_the_axis_names():
    def keys_of(picture):
        maps = mmattn.attend(detector("DetrModel"), image=picture, processor=processor())
        return maps[0].storage[0].source.k[0]

    axis = maps_of("DetrModel").samples[0].select(stream="vision")[0].key_axis
    dark = np.zeros((120, 90, 3), dtype=np.uint8)
    before = keys_of(dark)
    for token in (0, 9, 23):
        x0, y0, x1, y1 = (round(side) for side in axis.place(token))
        lit = dark.copy()
        lit[y0:y1, x0:x1] = 255
        moved = int((keys_of(lit) - before).abs().sum(dim=(0, 2)).argmax())
        away = [abs(a - b) for a, b in zip(divmod(moved, 4), divmod(token, 4), strict=True)]
        assert max(away) <= 1  # kernels reach over cells


@pytest.mark.parametrize(
    "name",
    [
        "DeformableDetrForObjectDetection",
        "DeformableDetrModel",
        "RTDetrModel",
        "RTDetrV2ForObjectDetection",
        "DFineForObjectDetection",
        "Deimv2Model",
        "RfDetrForObjectDetection",
        "LwDetrModel",
        "OmDetTurboForObjectDetection",
        "MMGroundingDinoModel",
        "GroundingDinoForObjectDetection",
        "GroundingDinoModel",
    ],
)
def test_deformable_attention_is_refused_by_name(tmp_path, name):
    cls = getattr(hf, name)
    model = cls.__new__(cls)  # refused by its class, before anything of it is looked at
    torch.nn.Module.__init__(model)
    model.config = cls.config_class()
    assert adapter.claims(model)
    with pytest.raises(ModelError, match=rf"{name} attends by deformable sampling.*mmattn.capture"):
        mmattn.attend(model.eval(), image=PHOTO, text="a cat." if "Dino" in name else None)
    config = {"architectures": [name], "model_type": cls.config_class.model_type}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"{name} attends by deformable sampling"):
        adapter.open(str(tmp_path))


def test_a_folder_opens_and_a_whole_mask_is_taken(tmp_path):
    detector("DetrForObjectDetection").save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    maps = mmattn.attend(str(tmp_path), image=PHOTO)
    given = processor()(images=PHOTO, return_tensors="pt")
    same = mmattn.attend(detector("DetrForObjectDetection"), inputs=dict(given), image=PHOTO, processor=processor())
    for one, other in zip(maps, same, strict=True):
        assert torch.allclose(one.weights(), other.weights(), atol=1e-5)
