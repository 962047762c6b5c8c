"""A rehearsal on the meta device says what the real forward would do."""

import pytest
import torch
from small_stages import of_torchvision, staged
from torch import nn

import mmattn
from mmattn.adapters.vit.rehearsal import check_size, forget, meta_twin, rehearse
from mmattn.errors import InputError


def call(model, pixels):
    return model(pixels)


@pytest.mark.parametrize("name", ["swin", "pvt", "cait", "xcit", "crossvit", "maxvit"])
def test_it_sees_the_calls_that_the_model_makes(name):
    model = staged(name)
    side = 160 if name == "maxvit" else 64 if name in ("swin", "cait") else 224
    with torch.no_grad(), mmattn.capture(model) as recording:
        model(torch.rand(1, 3, side, side))
    found = rehearse(model, shape=(1, 3, side, side), call=call)
    assert [(path, kind) for path, _, kind in found.attends] == [(one.module, one.kind) for one in recording.calls]
    assert found.weights == max(weights_a_head(one) for one in recording.calls)


def weights_a_head(one):
    """Count the weights by making them."""
    weights = mmattn.interception.weights_of(one)
    return weights.numel() // weights.shape[-3]


def test_the_model_is_not_touched():
    model, ran = staged("swin"), []
    handle = model.register_forward_hook(lambda *_: ran.append(1))
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert not rehearse(model, shape=(3, 3, 64, 64), call=call).problem
    handle.remove()
    assert not ran
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert all(tensor.is_meta for tensor in meta_twin(model).state_dict().values())


def test_a_failure_is_a_sentence_and_is_tried_anew_after_the_model_changed():
    model = of_torchvision("vit")
    assert rehearse(model, shape=(1, 3, 80, 64), call=call).problem == "Wrong image height! Expected 64 but got 80"
    assert "a check of its own failed" in rehearse(staged("botnet"), shape=(1, 3, 64, 64), call=call).problem
    own = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    assert rehearse(own, shape=(1, 3, 4, 4), call=call).problem
    own[1] = nn.Linear(3 * 4 * 4, 4)
    assert not rehearse(own, shape=(1, 3, 4, 4), call=call).problem
    own[1] = nn.Linear(7, 4)
    assert not rehearse(own, shape=(1, 3, 4, 4), call=call).problem  # what went well is kept
    forget(own)
    assert rehearse(own, shape=(1, 3, 4, 4), call=call).problem


def test_where_nothing_can_be_rehearsed_the_run_is_left_to_tell():
    class Reads(nn.Module):
        def forward(self, pixels):
            return pixels * float(pixels.mean())

    given = {"native_px": (8, 8), "unit_px": 8, "channels": 3, "call": call, "advice": lambda: ""}
    assert check_size(Reads(), (9, 9), **given) is None
    with pytest.raises(InputError, match=r"VisionTransformer cannot take inputs of 70 x 64 px.*It takes 64 x 64 px"):
        check_size(of_torchvision("vit"), (70, 64), **{**given, "native_px": (64, 64)})
