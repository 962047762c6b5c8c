"""Every reading of attention that mmattn has, by one name each, and the model that they are tried on.

Of a batch one forward pass serves all readings that know no target, and one forward and backward pass all that read
toward one: that is the only thing in which `Reading.each` differs from the door (`Reading.door`) that users call, and
whose time is measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import mmattn
from assets.training.things import things
from mmattn import opening
from mmattn.analysis.attention_x_gradient import attention_x_gradient
from mmattn.analysis.attribution import attribute
from mmattn.analysis.chefer import chefer
from mmattn.analysis.grad_rollout import grad_rollout
from mmattn.interception.protocol import Adapter, Classifies, TakesSizes
from mmattn.schema.maps import AttentionMaps
from mmattn.schema.results import Relevance

OURS = "mmattn:vit"
LAST, HEAD, ROLLOUT, LEAST = "last layer", "last layer, best head", "rollout", "rollout, least over heads"
TIMES_LAST, TIMES, GRAD_ROLLOUT = "attention x gradient, last layer", "attention x gradient", "gradient rollout"
CHEFER = "Chefer"
_LARGEST_PX = 224


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read attention.

    Parameters
    ----------
    name
        As in the tables.
    aimed
        Whether it reads toward a target.
    each
        From one sample of the maps (aimed: of `attribute`) to its map.
    door
        From maps to the same map, as a user asks for it; the top class is the target.

    """

    name: str
    aimed: bool
    each: Callable[[Any], Relevance]
    door: Callable[[AttentionMaps], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A model that is open, and how scenes are shown to it.

    Parameters
    ----------
    name
        As `mmattn image --model` takes it.
    size_px
        Side of its input and of the scenes. What its transform crops of them, the axes know.
    names_things
        Whether it has class logits, of the things that are in the scenes. Only then there are targets.

    """

    name: str
    model: nn.Module
    adapter: Adapter
    processor: Any
    labels: tuple[str, ...] | None
    size_px: int
    names_things: bool

    def attend(self, pictures: Sequence[Any]) -> AttentionMaps:
        """Return the maps of a batch of pictures."""
        takes = isinstance(self.adapter, TakesSizes)
        options = self.adapter.image_options(size_px=self.size_px, keep_aspect=False) if takes else None  # type: ignore[attr-defined]
        maps = mmattn.attend(self.model, image=list(pictures), processor=self.processor, options=options)
        return maps.named(weights=self.name, labels=self.labels)

    def logits(self, maps: AttentionMaps) -> Tensor:
        """Return the class logits, [sample, class], of the pictures of some maps."""
        assert isinstance(self.adapter, Classifies)
        assert maps.rerun is not None
        with torch.no_grad():
            return self.adapter.logits(maps.rerun())


def opened(name: str) -> Subject:
    """Open a model by name; scenes have the size of its input, up to 224 px."""
    _, adapter, found = opening.open_model(name)
    side = getattr(getattr(found.model, "patch_embed", None), "img_size", None) or (_LARGEST_PX,)
    subject = Subject(
        name=name,
        model=found.model,
        adapter=adapter,
        processor=found.processor,
        labels=found.labels,
        size_px=min(_LARGEST_PX, int(side[0])),
        names_things=False,
    )
    maps = subject.attend([torch.zeros(3, subject.size_px, subject.size_px)])
    named = set(found.labels or ()) >= {each.noun for each in things()}
    return replace(subject, names_things=maps.classifies and named)


def readings(subject: Subject, *, head: int) -> tuple[Reading, ...]:
    """Return every reading that a model allows, those without a target first."""
    plain = (
        Reading(name=LAST, aimed=False, each=mmattn.look, door=mmattn.look),
        _one_head(head),
        Reading(name=ROLLOUT, aimed=False, each=mmattn.rollout, door=mmattn.rollout),
        Reading(name=LEAST, aimed=False, each=_least, door=_least),
    )
    aimed = (
        Reading(
            name=TIMES_LAST,
            aimed=True,
            each=lambda one: attention_x_gradient(one, layer=-1),
            door=lambda maps: mmattn.relevance(maps, method="attention_x_gradient", layer=-1),
        ),
        Reading(name=TIMES, aimed=True, each=attention_x_gradient, door=_door("attention_x_gradient")),
        Reading(name=GRAD_ROLLOUT, aimed=True, each=grad_rollout, door=_door("grad_rollout")),
        Reading(name=CHEFER, aimed=True, each=chefer, door=_door("chefer")),
    )
    return plain + (aimed if subject.names_things else ())


def read(
    maps: AttentionMaps, chosen: Sequence[Reading], *, target: list[int | str | None]
) -> dict[str, list[Relevance]]:
    """Return the maps of every reading, by its name, one a sample."""
    found = {one.name: [one.each(sample) for sample in maps.samples] for one in chosen if not one.aimed}
    if any(one.aimed for one in chosen):
        attributed = attribute(maps, target=target)
        found |= {one.name: [one.each(sample) for sample in attributed] for one in chosen if one.aimed}
    return found


def heads_of_last(maps: AttentionMaps) -> tuple[Reading, ...]:
    """Return a reading for each head of the last layer."""
    return tuple(_one_head(head, name=str(head)) for head in range(maps.select()[-1].heads or 0))


def _one_head(head: int, name: str = HEAD) -> Reading:
    def asked(maps: AttentionMaps) -> Any:
        return mmattn.look(maps, head=head)

    return Reading(name=name, aimed=False, each=asked, door=asked)


def _least(maps: AttentionMaps) -> Any:
    """Return rollout over what all heads agree on (Gildenblat 2020, "Exploring explainability for ViTs")."""
    return mmattn.rollout(maps, head_fusion="min")


def _door(method: str) -> Callable[[AttentionMaps], Any]:
    return lambda maps: mmattn.relevance(maps, method=method)
