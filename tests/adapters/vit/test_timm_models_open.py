"""timm's other models by name: files, sizes, and refusals before anything is fetched."""

import fnmatch
import socket

import pytest
import timm
import torch
from safetensors.torch import save_file

import mmattn
from mmattn.adapters.vit import timm_names
from mmattn.adapters.vit.timm import TimmOptions
from mmattn.adapters.vit.timm import adapter as plain
from mmattn.adapters.vit.timm_models import adapter
from mmattn.adapters.vit.timm_names import other_families, rehearsal_of
from mmattn.assets import __file__ as assets
from mmattn.errors import DownloadError, FormatError, InputError, ModelError, NoAttentionError, NotFoundError
from mmattn.interception.protocol import MediaGiven
from mmattn.opening import open_model
from mmattn.readers import read_photo

WIDE = assets.replace("__init__.py", "photos/coffee.jpg")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def unresolved(*args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def saved(folder, name, **given):
    torch.manual_seed(0)
    model = timm.create_model(name, **given).eval()
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.clone().contiguous() for key, tensor in model.state_dict().items()}, str(path))
    return model, path


@pytest.mark.parametrize("name", ["test_maxvit", "pvt_v2_b0", "levit_128s"])
def test_a_file_opens_with_its_own_number_of_classes_and_the_same_output(name, tmp_path):
    model, path = saved(tmp_path, name, num_classes=7)
    entry, _, opened = open_model(f"timm:{name}@{path}")
    assert entry == "timm.models"
    assert opened.model.num_classes == 7
    picture = torch.rand(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.allclose(opened.model(picture), model(picture), atol=1e-5)


def test_a_file_without_classifier_opens_as_features(tmp_path):
    _, path = saved(tmp_path, "pvt_v2_b0", num_classes=0)
    assert adapter.open(f"pvt_v2_b0@{path}").model.num_classes == 0


def test_a_file_of_another_model_is_refused(tmp_path):
    _, path = saved(tmp_path, "pvt_v2_b0", num_classes=2)
    with pytest.raises(FormatError, match="does not fit levit_128s"):
        adapter.open(f"levit_128s@{path}")


def test_a_swin_by_name_takes_any_size_and_gives_the_same_at_its_own(tmp_path):
    model, path = saved(tmp_path, "swin_tiny_patch4_window7_224", num_classes=3)
    opened = adapter.open(f"swin_tiny_patch4_window7_224@{path}").model
    picture = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(opened(picture), model(picture), atol=1e-5)
    whole = TimmOptions(size_px=96, keep_aspect=True)
    assert adapter.prepare(opened, MediaGiven(image=read_photo(WIDE)), None, whole).inputs[0].shape == (1, 3, 96, 128)


def test_a_coatnet_by_name_is_set_to_the_size_and_back(tmp_path):
    _, path = saved(tmp_path, "test_coatnet", num_classes=3)
    opened = adapter.open(f"test_coatnet@{path}").model
    first = mmattn.attend(opened, image=WIDE)
    larger = mmattn.attend(opened, image=WIDE, options=TimmOptions(size_px=192))
    assert (first.layers[0].query_axis.rows, larger.layers[0].query_axis.rows) == (10, 12)
    again = mmattn.attend(opened, image=WIDE)
    for one, other in zip(first.layers, again.layers, strict=True):
        assert one.key_axis == other.key_axis


def test_a_model_of_the_users_own_is_never_set_to_another_size(tmp_path):
    model, _ = saved(tmp_path, "test_coatnet", num_classes=3)
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"or call model.set_input_size\(\(192, 192\)\) before"):
        mmattn.attend(model, image=WIDE, options=TimmOptions(size_px=192))
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == before


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet50", NoAttentionError, "resnet50 has no attention.*convolutional"),
        ("swiftformer_xs", NoAttentionError, "swiftformer_xs has no token attention: .*linear"),
        ("edgenext_small", ModelError, "edgenext_small attends between channels"),
        ("swin_tiny_patch4_window7_224", DownloadError, "could not be fetched.*timm:swin_.*@FILE"),
        ("vit_tiny_patch16_224", DownloadError, "could not be fetched"),
        ("maxvit_tiny_rw_256", NotFoundError, 'no pretrained weights for "maxvit_tiny_rw_256"'),
        ("swin_tinny_patch4_window7_224", NotFoundError, 'no model "swin_tinny.*swin_tiny_patch4_window7_224'),
        ("vit_tinny_patch16_224", NotFoundError, 'no model "vit_tinny.*vit_tiny_patch16_224'),
    ],
)
def test_names_end_in_the_error_that_helps(name, error, message):
    with pytest.raises(error, match=message):
        open_model(f"timm:{name}")


def test_of_the_two_adapters_one_reads_a_name():
    with pytest.raises(ModelError, match=r"vit_tiny_patch16_224 is a plain vision transformer\. timm.vit reads"):
        adapter.open("vit_tiny_patch16_224")
    with pytest.raises(ModelError, match=r"pvt_v2_b0 is not a plain vision transformer\. timm.vit reads"):
        plain.open("pvt_v2_b0")
    configs = [{"architecture": "pvt_v2_b0"}, {"architecture": "test_vit"}, {"architectures": ["BertModel"]}]
    assert [adapter.opens(config) for config in configs] == [True, False, False]
    assert [plain.opens(config) for config in configs] == [False, True, False]


def test_every_line_of_the_families_names_models_with_token_attention():
    names = timm.list_models()
    assert len(list(other_families())) == len(timm_names._OTHERS)
    for index, patterns in enumerate(timm_names._OTHERS):
        for pattern in patterns:
            own = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
            assert own, pattern
        if index % 4 == 0:  # the sweep of benchmarks/coverage.py runs a member of each
            assert rehearsal_of(min(own, key=lambda name: (len(name), name))).places
