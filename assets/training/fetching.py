"""Pictures made ready for scenes: `python assets/training/fetching.py [--ship]`.

Without an option, the training backgrounds are fetched and made ready in the cache (scenes.py and train.py do the
same when they first need them). `--ship` makes what lies in the repository again: the objects and the held-out
backgrounds.

Panoramas come as EXR with the light of the scene, up to 20,000 times the gray of the room. Their compression rings
around lamps, with light below zero: a median of the neighborhood takes its place. They are exposed so that their
median is 0.18 and brought down by x / (1 + x), which keeps lamps and skies from bleaching (Reinhard et al. 2002,
"Photographic tone reproduction for digital images"), then gamma 2.2.
"""

import argparse
import base64
import hashlib
import importlib
import io
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from assets.training.registries import HERE, Background, archive, backgrounds, member, package
from assets.training.things import things
from mmattn.catalog import cache_folder
from mmattn.errors import MissingExtraError, MmattnError, OutputError

OBJECT_PX = 128
SHORT_PX = 400
"""The shorter side of a background that is kept: three times a scene of 112 px."""

_OBJECTS = "@lobehub/fluent-emoji-3d"
_READY = ".ready"
_MADE = 2  # counts the changes in how a background is made ready


def train_folder() -> Path:
    """Return the folder of the training backgrounds, fetched and made ready if they are not there yet.

    Raises
    ------
    DownloadError, MissingExtraError
        A registry does not answer or has other bytes, or its client is missing.

    """
    # named by what is in it: other sources, or another way to make them ready, are another folder
    recipe = f"{_MADE} {SHORT_PX} {[(each, package(each.package)) for each in backgrounds('train')]}".encode()
    folder = cache_folder() / "training" / f"backgrounds-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not (folder / _READY).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as staging:
            for each in backgrounds("train"):
                Image.fromarray(made_ready(each)).save(Path(staging) / f"{each.name}.png")
            folder.mkdir(exist_ok=True)
            for file in sorted(Path(staging).iterdir()):
                file.replace(folder / file.name)
        (folder / _READY).touch()
    return folder


def made_ready(background: Background) -> NDArray[np.uint8]:
    """Return a background as RGB, its shorter side `SHORT_PX` at most."""
    raw = member(archive(package(background.package)), background.member)
    if background.member.endswith(".exr.js"):
        return exposed(_exr(base64.b64decode(raw.split(b"base64,")[1].split(b"'")[0])))
    with Image.open(io.BytesIO(raw)) as photo:
        return _smaller(photo.convert("RGB"))


def exposed(light: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return a panorama of light, linear, as a picture: its band between 15 and 80 % of the height.

    Examples
    --------
    >>> int(exposed(np.full((20, 9, 3), 7.0))[0, 0, 0])
    108

    """
    band = _calmed(light)[int(0.15 * len(light)) : int(0.80 * len(light))]
    scaled = 0.18 * band / max(float(np.median(band)), 1e-6)
    shown = 255 * (scaled / (1 + scaled)) ** (1 / 2.2)
    return np.rint(shown).astype(np.uint8)


def _calmed(light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Put the median of the neighborhood where light rings: at and beside what is below zero."""
    shown = light.astype(np.float32)
    for _ in range(2):
        rings = cv2.dilate((shown.min(axis=-1) < 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        shown = np.where(rings[..., None], cv2.medianBlur(shown, 5), shown)
    return np.maximum(shown, 0)


def ship() -> None:
    """Make the pictures that lie in the repository: 96 objects and the held-out backgrounds of their own."""
    emoji = archive(package(_OBJECTS))
    (HERE / "objects").mkdir(exist_ok=True)
    for thing in things():
        with Image.open(io.BytesIO(member(emoji, f"package/assets/{thing.file}"))) as picture:
            small = picture.convert("RGBA").resize((OBJECT_PX, OBJECT_PX), Image.Resampling.LANCZOS)
        small.save(HERE / "objects" / thing.file, quality=88, method=6)
    (HERE / "backgrounds").mkdir(exist_ok=True)
    for each in backgrounds("held-out"):
        path = HERE.parent / str(each.shipped)
        if path.parent == HERE / "backgrounds":
            Image.fromarray(made_ready(each)).save(path, quality=80, method=6)


def _exr(raw: bytes) -> NDArray[np.floating]:
    try:
        openexr = importlib.import_module("OpenEXR")
    except ImportError:
        raise MissingExtraError(
            "The panoramas among the training backgrounds are EXR files, and OpenEXR is not installed. "
            "It is needed once, to make them ready. Run python -m pip install OpenEXR==3.5.3."
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "panorama.exr"
        path.write_bytes(raw)
        light: NDArray[np.floating] = openexr.File(str(path)).channels()["RGB"].pixels
        return light.astype(np.float32)


def _smaller(photo: Image.Image) -> NDArray[np.uint8]:
    scale = min(1.0, SHORT_PX / min(photo.size))
    size = (round(photo.width * scale), round(photo.height * scale))
    return np.asarray(photo.resize(size, Image.Resampling.LANCZOS), np.uint8)


def main() -> None:
    """Fetch what was asked for; problems are one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser(description="Fetch what scenes are made of.")
    parser.add_argument("--ship", action="store_true", help="make the pictures in the repository again")
    options = parser.parse_args()
    try:
        if options.ship:
            ship()
            print(HERE)
        else:
            print(train_folder())
    except MmattnError as problem:
        sys.exit(_line(problem))
    except OSError as problem:
        sys.exit(_line(OutputError(f"{problem}. The cache must be writable. Name another folder in MMATTN_CACHE.")))


def _line(problem: Exception) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
