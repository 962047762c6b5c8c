"""One picture, one sentence, and which word of it goes with which part of the picture.

A model of two towers compares a picture with a text by their two features alone: no attention runs between them. What
a word and a patch add to the score together is worked out from the derivatives of both towers. The scene was composed,
so that the sentence is true.

python examples/match.py --out pictures
"""

from pathlib import Path

from options import read_options

import mmattn
from mmattn.catalog import scene_path, scene_truth

SCENE = "frog-doughnut"


def main() -> Path:
    """Draw a line from each word to its strongest patch, and beside it a picture for each word."""
    options = read_options(photo=scene_path(SCENE), model="mmattn:clip")
    match = mmattn.match(options.model, options.photo, texts=scene_truth(SCENE).caption)
    (relevance,) = match.relevances
    for word in match.words():
        print(f"{word.text}: {match.word(word.span).peak()}")
    return mmattn.links(relevance, heat=True).save(options.picture("match"))


if __name__ == "__main__":
    print(main())
