"""A sentence about a scene that is true of its boxes: "two red apples, and a brown dog left of a key".

A caption names things, with their color or without, how many of each, and now and then how two of them lie:
`left of` or `above`, said only where it is plain. Then their middles are a sixth of the picture apart at least, and
neither reaches past the other's middle; for every one of the first and every one of the second. "a dog" says that
there is one dog and no other; what a caption leaves out is not said to be absent. In one of five scenes with
different things a part of them is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from assets.training.compose import Box, Placed
from assets.training.draws import Draws
from assets.training.things import Thing

RELATIONS = ("left of", "above")
CLEAR = 1 / 6
"""How far apart two middles are, in sides of the picture, before their relation is said."""

_COUNTS = {2: "two", 3: "three"}


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What is said, and of which objects (their positions in the scene)."""

    text: str
    mentioned: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Group:
    """All objects of one kind."""

    thing: Thing
    positions: tuple[int, ...]
    boxes: tuple[Box, ...]


def caption(objects: Sequence[Placed], draws: Draws, *, size_px: int) -> Caption:
    """Return a true sentence about a scene's objects.

    Examples
    --------
    >>> from assets.training.things import thing
    >>> dog = Placed(thing=thing("dog"), box_px=(5, 5, 40, 40))
    >>> caption([dog], Draws("an example"), size_px=112).text in ("a dog", "a brown dog")
    True

    """
    groups = _groups(objects)
    groups = [groups[each] for each in draws.order(len(groups))]
    if len(groups) > 1 and draws.chance(0.2):
        groups = groups[: 1 + draws.below(len(groups) - 1)]
    mentioned = tuple(sorted(position for group in groups for position in group.positions))
    said = {group.thing.noun: phrase(group.thing, len(group.boxes), color=draws.chance(0.5)) for group in groups}
    pairs = [
        (one, relation, other)
        for one in groups
        for other in groups
        for relation in RELATIONS
        if one is not other and all(holds(relation, a, b, size_px=size_px) for a in one.boxes for b in other.boxes)
    ]
    if not pairs or not draws.chance(0.7):
        return Caption(text=_joined([said[group.thing.noun] for group in groups]), mentioned=mentioned)
    one, relation, other = pairs[draws.below(len(pairs))]
    related = f"{said[one.thing.noun]} {relation} {said[other.thing.noun]}"
    rest = [said[group.thing.noun] for group in groups if group is not one and group is not other]
    return Caption(text=", and ".join([*rest, related]), mentioned=mentioned)


def holds(relation: str, one: Box, other: Box, *, size_px: int) -> bool:
    """Whether one box is plainly left of another, or above it.

    Examples
    --------
    >>> holds("left of", (0, 0, 20, 20), (60, 0, 80, 20), size_px=112)
    True

    """
    axis = RELATIONS.index(relation)
    middle, other_middle = (one[axis] + one[axis + 2]) / 2, (other[axis] + other[axis + 2]) / 2
    return other_middle - middle >= CLEAR * size_px and one[axis + 2] <= other_middle and middle <= other[axis]


def phrase(thing: Thing, count: int, *, color: bool) -> str:
    """Return so many of a thing in words; without its color where it has no single one.

    Examples
    --------
    >>> from assets.training.things import thing
    >>> phrase(thing("apple"), 1, color=True), phrase(thing("apple"), 2, color=False)
    ('a red apple', 'two apples')
    >>> phrase(thing("scissors"), 1, color=False), phrase(thing("orange"), 1, color=True)
    ('scissors', 'an orange')

    """
    shown = f"{thing.color} " if color and thing.color and thing.color != thing.noun else ""
    if thing.plural is None:
        return shown + thing.noun
    if count > 1:
        return f"{_COUNTS[count]} {shown}{thing.plural}"
    words = shown + thing.noun
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _groups(objects: Sequence[Placed]) -> list[_Group]:
    kinds = dict.fromkeys(each.thing for each in objects)
    found = []
    for kind in kinds:
        positions = tuple(position for position, each in enumerate(objects) if each.thing == kind)
        found.append(_Group(thing=kind, positions=positions, boxes=tuple(objects[each].box_px for each in positions)))
    return found


def _joined(phrases: Sequence[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
