"""Switch off one head at a time, and see how far its output moves.

`mmattn.intervene` writes at the point where weights meet values, so a head set to zero is really
gone; the model itself is not touched, and its fused kernels come back afterwards.

python examples/intervene_heads.py --out pictures
"""

from pathlib import Path

import torch
from options import read_options

import mmattn


def main() -> Path:
    """Draw each head of the last layer with the share by which the features move without it."""
    options = read_options(photo="rocket")
    maps = mmattn.attend(options.model, image=options.photo)
    last = maps.select()[-1]

    drawings, titles = [], []
    for head in range(last.heads or 1):
        moved = features_moved(maps, layer=last.name, head=head)
        drawings.append(mmattn.overlay(mmattn.look(maps, head=head), caption=""))
        titles.append(f"head {head}: output moves {moved:.0%}")
    return mmattn.side_by_side(drawings, titles=titles, cols=3).save(options.picture("intervene_heads"))


def features_moved(maps: mmattn.AttentionMaps, *, layer: str, head: int) -> float:
    """Return how far the output moves when one head looks at nothing, as a share of its length."""

    def without(weights: torch.Tensor, call: object) -> torch.Tensor:
        weights = weights.clone()
        weights[:, head] = 0
        return weights

    with torch.no_grad():
        before = output(maps)
        with mmattn.intervene(maps.model, without, layers=layer):
            after = output(maps)
    return float((after - before).norm() / before.norm())


def output(maps: mmattn.AttentionMaps) -> torch.Tensor:
    """Run the model again on the same input and return its answer: logits, or features."""
    assert maps.rerun is not None
    answer = maps.rerun()
    return answer if isinstance(answer, torch.Tensor) else answer.values


if __name__ == "__main__":
    print(main())
