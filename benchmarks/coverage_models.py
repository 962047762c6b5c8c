"""One member of a family of models: how it is built, stirred and run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.interception import intervene
from mmattn.interception.calls import Call
from mmattn.interception.intervene import Edit
from mmattn.interception.protocol import MediaGiven, Prepared
from mmattn.plugins import claiming
from mmattn.readers import read_photo
from mmattn.schema.layers import AttentionLayer


@dataclass(frozen=True, kw_only=True)
class Member:
    """The model that stands for its family.

    Parameters
    ----------
    library, family, name
        Where it comes from; the family; which member of it.
    build
        Makes it; `fused=False`: without fused attention kernels.
    size_px
        Width and height of the pictures that it is tried with.
    call
        Runs it on a tensor of pixels.
    options
        What the table says of how it was made smaller.
    given
        What is passed with pixels: themselves, or a text beside them.

    """

    library: str
    family: str
    name: str
    build: Callable[..., nn.Module]
    size_px: tuple[int, int]
    call: Callable[[nn.Module, Tensor], Any] = field(default=lambda model, pixels: model(pixels))
    options: str = ""
    given: Callable[[Tensor], Any] = field(default=lambda pixels: pixels)

    def made(self) -> nn.Module:
        """Return the model with random weights that hide nothing: see `stir`."""
        torch.manual_seed(0)
        model = self.build(fused=True).eval()
        stir(model)
        calibrate(model, lambda: self.call(model, self.pixels(4, seed=1)))
        return model

    def unfused(self, model: nn.Module) -> nn.Module:
        """Return the same model without fused kernels."""
        torch.manual_seed(0)
        plain = self.build(fused=False).eval()
        plain.load_state_dict(model.state_dict())
        return plain

    def pixels(self, count: int, *, seed: int = 0) -> Tensor:
        """Return noise `[sample, 3, row, col]`."""
        width, height = self.size_px
        return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


class Seat:
    """A model and the adapter that claims it, as `mmattn.attend` uses them, with the attention open to edits.

    Parameters
    ----------
    model
        Ready to run.
    photos
        Whether pictures are photographs (values 0 to 1), which the adapter resizes and crops, or the model's pixels.

    """

    def __init__(self, model: nn.Module, *, photos: bool = False) -> None:
        self.model = model
        self.photos = photos
        self.adapter = claiming(model)[1]

    def prepare(self, pixels: Any) -> Prepared:
        """Return what the adapter makes of pictures `[sample, 3, row, col]`, or of those and a text."""
        media = MediaGiven(image=[read_photo(one) for one in pixels]) if self.photos else MediaGiven(inputs=pixels)
        return self.adapter.prepare(self.model, media, None, None)

    def watch(self, pixels: Tensor, edit: Edit, *, edited: bool = False) -> Sequence[AttentionLayer]:
        """Return the layers of a run in which `edit` changes all weights, as they were before or as they are then."""
        calls: list[Call] = []

        def noted(weights: Tensor, call: Call) -> Tensor | None:
            new = edit(weights, call)
            whole = call if call.q is not None else call.but(weights=weights)
            whole = whole.but(q=None, k=None, mask=None, weights=new) if edited else whole
            kept = {name: getattr(whole, name) for name in ("q", "k", "weights")}
            calls.append(whole.but(**{name: one.clone() for name, one in kept.items() if one is not None}))
            return new

        prepared = self.prepare(pixels)
        with torch.no_grad(), intervene(self.model, noted):
            prepared.run()
        return self.adapter.layers(calls, prepared)


def stir(model: nn.Module) -> None:
    """Make fresh parameters uneven and large enough, so that no bias, gate or scale could go missing unseen.

    Fresh models have biases of zero, residual scales of 1e-5, last norms of zero, and projections so
    small that every map is flat: a map that forgot them would look exact.
    """
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                _look_ahead(module.weight, module.stride)
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if parameter.numel() == 1 or float(parameter.max() - parameter.min()) == 0:
                start = float(parameter.flatten()[0])
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_(noise + (0.5 if 0 < abs(start) < 0.5 else start))
            elif parameter.dim() > 1:
                unit = parameter[0].numel() ** -0.5
                parameter.mul_(max(1.0, unit / max(float(parameter.std()), 1e-20)))


def _look_ahead(kernel: Tensor, stride: tuple[int, ...]) -> None:
    """Make a kernel look mostly at its middle: a random one of 7 x 7 says little of where its token is."""
    for dim, step in enumerate(stride, start=2):
        size = kernel.shape[dim]
        along = (torch.arange(size) - (size - 1) / 2) / (0.35 * step + 0.1)
        shape = [size if at == dim else 1 for at in range(kernel.dim())]
        kernel.mul_(torch.exp(-along.square()).reshape(shape).to(kernel))


def calibrate(model: nn.Module, run: Callable[[], Any]) -> None:
    """Give batch norms the statistics of one batch: with fresh ones a deep network's signal dies or explodes."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        with torch.no_grad():
            run()
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
