"""Names of models, and folders that libraries save, reach the adapter that opens them."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

import mmattn
from mmattn.errors import FormatError, ModelError, NotFoundError
from mmattn.opening import open_model


def test_a_folder_that_transformers_saved_is_opened_by_its_adapter(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = BertConfig(vocab_size=7, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(tmp_path)
    maps = mmattn.attend(str(tmp_path), text="a cat")
    assert len(maps) == 2
    assert mmattn.attend(f"hf:{tmp_path}", text="a cat").source.adapter == "transformers.text"


def test_a_folder_that_timm_saved_is_opened_by_its_adapter(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "pretrained_cfg": {"input_size": [3, 224, 224], "num_classes": 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    name, _, opened = open_model(str(tmp_path))
    assert name == "timm.vit"
    assert torch.equal(opened.model.state_dict()["cls_token"], model.state_dict()["cls_token"])


def test_folders_and_configs_that_are_no_models_are_refused_in_one_line(tmp_path):
    with pytest.raises(NotFoundError, match=r"holds no config\.json"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"config\.json of .* cannot be read"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(FormatError, match=r"cannot be read"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        open_model(str(tmp_path))


def test_names_without_a_library_are_told_the_forms_and_no_name_that_is_not_there():
    with pytest.raises(NotFoundError, match=r"Did you mean: mmattn:dinov2-small\?"):
        open_model("dinov2")
    for name in ("nope", "x" * 300, "a\0b", "timm:", "hf:"):
        with pytest.raises(NotFoundError, match="timm:NAME@FILE") as caught:
            open_model(name)
        assert "Did you mean" not in str(caught.value)
    with pytest.raises(NotFoundError, match=r"timm:NAME@deep/mine\.pth"):
        open_model("deep/mine.pth")
    with pytest.raises(NotFoundError, match='no library "nope"'):
        open_model("nope:")
