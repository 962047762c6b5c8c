"""Names, files and folders open a model ready to run, or say in one line why not."""

import json
import pickle
import socket
import time

import pytest
import timm
import torch
from safetensors.torch import save_file

import mmattn
from mmattn.adapters.vit.timm import adapter
from mmattn.adapters.vit.timm_names import MODULES, is_plain
from mmattn.errors import DownloadError, FormatError, InputError, ModelError, NotFoundError


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in timm.create_model("test_vit", num_classes=7).state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path, state):
    path = tmp_path / "mine.safetensors"
    save_file(state, str(path))
    return path


def test_file_of_tensors_opens_with_its_own_number_of_classes(checkpoint, state):
    opened = adapter.open(f"test_vit@{checkpoint}")
    assert not opened.model.training
    assert opened.model.num_classes == 7
    assert opened.labels is None
    assert opened.weights == "mine.safetensors"
    for name, tensor in opened.model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert "state_dict" not in opened.model.pretrained_cfg


def test_opened_by_name_a_model_takes_any_size_and_gives_the_same_at_its_own(checkpoint, state):
    opened = adapter.open("test_vit", weights=checkpoint).model
    plain = timm.create_model("test_vit", num_classes=7).eval()
    plain.load_state_dict(state)
    picture = torch.rand(1, 3, *plain.patch_embed.img_size)
    with torch.no_grad():
        assert torch.allclose(opened(picture), plain(picture), atol=1e-6)
        assert opened(torch.rand(1, 3, 64, 128)).shape == (1, 7)


def test_torch_checkpoints_open_also_when_wrapped(tmp_path, state):
    for number, wrapped in enumerate((state, {"state_dict": state, "epoch": 3}, {"model": state})):
        path = tmp_path / f"{number}.pth"
        torch.save(wrapped, path)
        assert torch.equal(adapter.open(f"test_vit@{path}").model.state_dict()["cls_token"], state["cls_token"])


def test_checkpoint_without_classifier_opens_as_features(tmp_path, state):
    path = tmp_path / "backbone.safetensors"
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("head.")}, str(path))
    assert adapter.open(f"test_vit@{path}").model.num_classes == 0


def test_folder_with_a_config_opens(tmp_path, state):
    from timm.models import save_for_hf

    model = timm.create_model("test_vit", num_classes=7)
    model.load_state_dict(state)
    save_for_hf(model, str(tmp_path / "saved"))
    assert adapter.opens({"architecture": "test_vit"})
    opened = adapter.open(str(tmp_path / "saved"))
    assert torch.equal(opened.model.state_dict()["cls_token"], state["cls_token"])
    assert opened.weights == "saved"


def test_files_that_are_no_checkpoint_of_the_model_are_refused(tmp_path, checkpoint, state):
    class Hostile:
        def __reduce__(self):
            return (print, ("code from a file ran",))

    text, hostile, empty, other = (tmp_path / name for name in ("a.safetensors", "b.pth", "c.pth", "d.safetensors"))
    text.write_text("not a checkpoint")
    hostile.write_bytes(pickle.dumps(Hostile()))
    torch.save({"epoch": 3}, empty)
    save_file({name: tensor for name, tensor in state.items() if "blocks.1" not in name}, str(other))
    with pytest.raises(InputError, match="There is no checkpoint"):
        adapter.open(f"test_vit@{tmp_path / 'missing.pth'}")
    for path, message in (
        (text, "cannot be read as a checkpoint"),
        (hostile, "cannot be read as a checkpoint"),
        (empty, "holds no tensors by name"),
        (other, r"does not fit test_vit: .*Missing key"),
    ):
        with pytest.raises(FormatError, match=message) as caught:
            adapter.open(f"test_vit@{path}")
        assert "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="does not fit vit_tiny_patch16_224"):
        adapter.open(f"vit_tiny_patch16_224@{checkpoint}")


def test_empty_and_foreign_checkpoints_are_one_line_without_warnings(tmp_path, recwarn):
    empty, foreign = tmp_path / "empty.pth", tmp_path / "foreign.pth"
    empty.write_bytes(b"")
    foreign.write_bytes(pickle.dumps({"a": pickle.Pickler}, protocol=4))
    with pytest.raises(FormatError, match=r"'empty.pth' is empty \(0 bytes\)"):
        adapter.open(f"test_vit@{empty}")
    with pytest.raises(FormatError, match="cannot be read as a checkpoint") as caught:
        adapter.open(f"test_vit@{foreign}")
    assert ".." not in str(caught.value).replace(" ...", "")
    assert not recwarn.list


def test_checkpoints_that_cannot_be_looked_at_are_one_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in ("", tmp_path / ("x" * 300), tmp_path / "loop", tmp_path / "a\0.pth", "~nobody-here/a.pth"):
        with pytest.raises(InputError, match="checkpoint|names no file"):
            adapter.open(f"test_vit@{path}")


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    class Hostile:
        def __reduce__(self):
            return (print, ("code from a file ran",))

    path = tmp_path / "hostile.pt"
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(FormatError):
        adapter.open(f"test_vit@{path}")
    assert "ran" not in capsys.readouterr().out


def test_unknown_names_list_the_nearest():
    with pytest.raises(NotFoundError, match=r'no model "vit_tny_patch16_224".*vit_tiny_patch16_224'):
        adapter.open("vit_tny_patch16_224")
    with pytest.raises(NotFoundError, match="no pretrained weights"):
        adapter.open("vit_tiny_patch16_224.of_my_own")
    with pytest.raises(ModelError, match="not a plain vision transformer"):
        adapter.open("swin_tiny_patch4_window7_224")


def test_without_a_network_it_says_what_to_do_at_once(monkeypatch):
    def unresolved(*args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"vit_huge_patch14_clip_224.*timm:.*@FILE.*mmattn:dinov2-small"):
        adapter.open("vit_huge_patch14_clip_224.dfn5b")
    assert time.monotonic() - start < 5


def test_failures_of_the_hub_itself_become_one_error(monkeypatch):
    from mmattn.adapters.vit import timm_open

    def refused(*args, **options):
        raise ConnectionResetError("reset by peer\nwith a long trace")

    monkeypatch.setattr(timm_open, "_check_reachable", lambda name: None)
    monkeypatch.setattr(timm, "create_model", refused)
    with pytest.raises(DownloadError, match="ConnectionResetError: reset by peer") as caught:
        adapter.open("vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)


def test_families_cover_the_plain_architectures_of_timm():
    families = {family.name.removeprefix("timm:").removesuffix("_*"): family for family in adapter.models()}
    names = [name for module in MODULES for name in timm.list_models(module=module) if not name.startswith("test_")]
    assert {name.split("_")[0] for name in names} == set(families)
    assert is_plain("vit_small_patch14_dinov2.lvd142m")
    assert not is_plain("resnet18")


def test_attend_opens_a_file_by_name(checkpoint):
    maps = mmattn.attend(f"timm:test_vit@{checkpoint}", inputs=torch.rand(1, 3, 160, 160))
    assert maps.source.weights == "mine.safetensors"
    assert maps.layers[0].key_axis.rows == 10


def test_class_names_in_a_folder_are_read_however_its_model_is_made(tmp_path, state):
    save_file(state, str(tmp_path / "model.safetensors"))
    names = [f"thing {number}" for number in range(7)]
    config = {"architecture": "test_vit", "num_classes": 7, "label_names": names, "pretrained_cfg": {"num_classes": 7}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert adapter.labels(model) == adapter.open(str(tmp_path)).labels == tuple(names)
    assert adapter.labels(timm.create_model("test_vit", num_classes=7)) is None
    maps = mmattn.attend(model, inputs=torch.rand(1, 3, *model.patch_embed.img_size))
    assert mmattn.relevance(maps, target="thing 4").target == "'thing 4' (4)"
    with pytest.raises(NotFoundError, match="The nearest names are: thing 4"):
        mmattn.relevance(maps, target="thign 4")
