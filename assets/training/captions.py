"""A sentence about a scene that is true of its boxes: "two red apples, and a brown dog left of a key".

A caption names things, with their color or without, how many of each, and now and then how two of them lie:
`left of` or `above`, said only where it is plain. Then their middles are a sixth of the picture apart at least, and
neither reaches past the other's middle; for every one of the first and every one of the second. "a dog" says that
there is one dog and no other; what a caption leaves out is not said to be absent. In one of five scenes with
different things a part of them is left out.

`rich` captions say more often how things lie, and in more words: `right of`, `below` and `next to` as well.

A caption that says how two things lie has a twin: the same words with the two things exchanged, which is false of the
scene. (`next to` has none: it is true both ways.) Who tells the two apart has not only looked for the nouns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from assets.training.compose import Box, Placed
from assets.training.draws import Draws
from assets.training.things import Thing

RELATIONS = ("left of", "above")
RICH = (*RELATIONS, "right of", "below")
BESIDE = "next to"
CLEAR = 1 / 6
"""How far apart two middles are, in sides of the picture, before their relation is said."""

_COUNTS = {2: "two", 3: "three"}


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What is said, and of which objects.

    Parameters
    ----------
    text
        The sentence.
    mentioned
        The positions, in the scene, of the objects that it is about.
    counts
        How many of each thing it says that there are.
    relation
        How two of the things lie, if it says so.
    exchanged
        The same sentence with these two exchanged, false of the scene; None without one.

    """

    text: str
    mentioned: tuple[int, ...]
    counts: tuple[tuple[Thing, int], ...]
    relation: tuple[Thing, str, Thing] | None = None
    exchanged: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Group:
    """All objects of one kind."""

    thing: Thing
    positions: tuple[int, ...]
    boxes: tuple[Box, ...]


def caption(objects: Sequence[Placed], draws: Draws, *, size_px: int, rich: bool = False) -> Caption:
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
    counts = tuple((group.thing, len(group.boxes)) for group in groups)
    said = {group.thing: phrase(group.thing, len(group.boxes), color=draws.chance(0.5)) for group in groups}
    pairs = [
        (one.thing, relation, other.thing)
        for one in groups
        for other in groups
        for relation in (RICH if rich else RELATIONS)
        if one is not other and _all_hold(relation, one.boxes, other.boxes, size_px=size_px)
    ]
    if not pairs or not draws.chance(0.85 if rich else 0.7):
        return Caption(text=_joined([said[group.thing] for group in groups]), mentioned=mentioned, counts=counts)
    one, relation, other = pairs[draws.below(len(pairs))]
    if rich and relation in ("left of", "right of") and draws.chance(0.15):
        relation = BESIDE
    rest = [said[group.thing] for group in groups if group.thing not in (one, other)]
    true, false = (", and ".join([*rest, f"{said[a]} {relation} {said[b]}"]) for a, b in ((one, other), (other, one)))
    return Caption(
        text=true,
        mentioned=mentioned,
        counts=counts,
        relation=(one, relation, other),
        exchanged=None if relation == BESIDE else false,
    )


def verdict(said: Caption, objects: Sequence[Placed], *, size_px: int, exchanged: bool = False) -> bool | None:
    """Return whether a caption, or its twin, is true of any scene; None where that is not plain.

    Examples
    --------
    >>> from assets.training.things import thing
    >>> dog, key = (Placed(thing=thing(noun), box_px=(x, 40, x + 30, 70)) for noun, x in (("dog", 5), ("key", 75)))
    >>> said = caption([dog], Draws("an example"), size_px=112)
    >>> verdict(said, [dog, key], size_px=112), verdict(said, [dog, dog], size_px=112)
    (True, False)

    """
    boxes: dict[Thing, list[Box]] = {}
    for each in objects:
        boxes.setdefault(each.thing, []).append(each.box_px)
    if any(len(boxes.get(thing, ())) != count for thing, count in said.counts):
        return False
    if said.relation is None:
        return True
    one, relation, other = said.relation
    first, second = (boxes[other], boxes[one]) if exchanged else (boxes[one], boxes[other])
    if _all_hold(relation, first, second, size_px=size_px):
        return True
    return False if relation != BESIDE and _all_hold(relation, second, first, size_px=size_px) else None


def holds(relation: str, one: Box, other: Box, *, size_px: int) -> bool:
    """Whether one box is plainly left of another, above it, and so on.

    Examples
    --------
    >>> holds("left of", (0, 0, 20, 20), (60, 0, 80, 20), size_px=112)
    True

    """
    match relation:
        case "left of" | "above":
            axis = RELATIONS.index(relation)
            middle, other_middle = (one[axis] + one[axis + 2]) / 2, (other[axis] + other[axis + 2]) / 2
            apart = other_middle - middle >= CLEAR * size_px
            return apart and one[axis + 2] <= other_middle and middle <= other[axis]
        case "right of":
            return holds("left of", other, one, size_px=size_px)
        case "below":
            return holds("above", other, one, size_px=size_px)
        case _:
            return any(holds(side, one, other, size_px=size_px) for side in ("left of", "right of"))


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


def _all_hold(relation: str, ones: Sequence[Box], others: Sequence[Box], *, size_px: int) -> bool:
    return all(holds(relation, one, other, size_px=size_px) for one in ones for other in others)


def _joined(phrases: Sequence[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
