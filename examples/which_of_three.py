"""One picture, three things, and the same attention read toward each of them.

Attention alone cannot say which of three things an answer came from. Chefer's relevance weighs it by the gradient of
one class. The scene was composed, so that the true boxes are known and can be drawn.

python examples/which_of_three.py --out pictures
"""

from pathlib import Path

from options import read_options

import mmattn
from mmattn.catalog import scene_path, scene_truth
from mmattn.render import outlined

SCENE = "zebra-crocodile-axe"


def main() -> Path:
    """Draw the scene, rollout, which knows no target, and the relevance toward each thing."""
    options = read_options(photo=scene_path(SCENE), model="mmattn:vit")
    truth = scene_truth(SCENE)
    maps = mmattn.attend(options.model, image=options.photo)
    drawings = [maps.media[0], mmattn.overlay(mmattn.rollout(maps))]
    titles = ["scene", "rollout, no target"]
    for noun in truth.nouns:
        seen = mmattn.relevance(maps, method="chefer", target=noun)
        drawings.append(outlined(mmattn.overlay(seen), truth.boxes(noun)))
        titles.append(f"toward {noun}")
    return mmattn.side_by_side(drawings, titles=titles).save(options.picture("which_of_three"))


if __name__ == "__main__":
    print(main())
