"""Scales and color maps: which number becomes which color, and how much of the photo it covers.

Sequential maps (viridis, inferno, magma, cividis: Smith and van der Walt 2015, Nunez et al. 2018)
rise evenly in lightness; the diverging one is Moreland's (2009, "Diverging Color Maps for
Scientific Visualization"); OrRd, for words on white paper, is ColorBrewer's (Harrower and Brewer
2003). They are kept as 33 anchors each, at most 2 levels of 255 from the originals (7 for cividis),
so that matplotlib is not needed to draw. Never a rainbow by default.

A flat map never looks sharp: the span of a scale is at least the mean level of its values. A map
that varies by 5 % therefore takes up a tenth of the colors, and says in its caption that it is
nearly flat. Only a map whose span reaches its own mean gets the whole range.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mmattn.errors import InputError, NotFoundError, nearest
from mmattn.render.marks import Color, Paint, Scale

_ANCHORS = {
    "viridis": (
        "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e23898e21918c1f978b"
        "1f9f8821a68527ad8131b57b3dbc744cc26c5cc8636ece5881d34d95d840aadc32c0df25d5e21aeae51afde725"
    ),
    "inferno": (
        "0000040403120b0724150b37210c4a2f0a5b3d09654a0c6b57106e64156e71196e7d1e6d8a226a972766a32c61b0315bbc3754c63d4d"
        "d04545da4e3ce35933eb6429f1711ff67e14f98c0afb9b06fcaa0ffbba1ff9c932f5d949f2e865f3f586fcffa4"
    ),
    "magma": (
        "0000040303120a0822130d341d114729115a36106b440f7651127c5d177f6a1c81762181832681902a819c2e7faa337db73779c23b75"
        "cf4070db476ae55064ee5b5ef4695cf9785dfb8761fd9668fea571feb47bfec287fed194fde0a1fceeb0fcfdbf"
    ),
    "cividis": (
        "00224e00285b002e6a0533711a386f273e6e32436d3b496c434e6c4b546c535a6d5a5f6e61656f686a716f70737676767d7c78838179"
        "8b8778928d789a9376a29975aaa073b3a670bbad6dc3b369ccba64d4c15fddc858e6d051efd748f8df3cfee838"
    ),
    "OrRd": (
        "fff7ecfff3e3feefdafeecd1fee8c8fee3bdfddeb3fdd9a8fdd49efdce97fdc791fdc18afdba83fdaf79fca36efc9863fc8c59f98455"
        "f67a51f2704cef6548e9583ee34b34dd3e2ad7301fce2417c51810bc0c08b30000a600009900008c00007f0000"
    ),
    "coolwarm": (
        "3b4cc0445acc4e68d85875e16282ea6c8ff1779af782a6fb8db0fe98b9ffa3c2feaec9fcb9d0f9c3d5f4ccd9edd5dbe5dddcdce4d9d2"
        "ebd3c6f1cdbaf4c5adf7bca1f7b194f7a688f49a7bf18d6fec7f63e57058de614dd55042cb3e38c0282fb40426"
    ),
}
SEQUENTIAL = "inferno"
DIVERGING = "coolwarm"
PAPER = "OrRd"
BLACK: Color = (0, 0, 0)
WHITE: Color = (255, 255, 255)

_LEAST_SHARE = 1 / 4  # where a flat map lies along its scale


@lru_cache(maxsize=32)
def table(name: str) -> UInt8[np.ndarray, "256 3"]:
    """Return the 256 RGB colors of a map: one of ours, or any name that matplotlib knows.

    Raises
    ------
    NotFoundError
        For an unknown name, with those that there are.

    Examples
    --------
    >>> table("viridis")[-1].tolist()
    [253, 231, 37]
    """
    if name in _ANCHORS:
        anchors = np.frombuffer(bytes.fromhex(_ANCHORS[name]), np.uint8).reshape(-1, 3)
        at = np.linspace(0, 255, len(anchors))
        columns = [np.interp(np.arange(256), at, anchors[:, channel]) for channel in range(3)]
        colors = np.round(np.stack(columns, axis=1)).astype(np.uint8)
    else:
        from matplotlib import colormaps

        if name not in colormaps:
            raise NotFoundError(
                f"There is no color map {name!r}. mmattn has {', '.join(_ANCHORS)}; of matplotlib's the nearest are "
                f"{nearest(name, colormaps)}. Pass one of those."
            )
        colors = np.round(colormaps[name](np.arange(256) / 255)[:, :3] * 255).astype(np.uint8)
    colors.flags.writeable = False
    return colors


@lru_cache(maxsize=64)
def lookup(paint: Paint, kind: Literal["sequential", "diverging"] = "sequential") -> UInt8[np.ndarray, "256 4"]:
    """Return the 256 RGBA colors of a paint: its map, with the opacity of every value.

    By value the opacity grows with the strength (the distance from the center of a diverging
    scale), a little faster at first, so that weak values still show and noise does not.
    """
    strength = np.linspace(0.0, 1.0, 256) if kind == "sequential" else np.abs(np.linspace(-1.0, 1.0, 256))
    alpha = paint.opacity * (strength**0.75 if paint.by_value else np.ones(256))
    opaque = np.round(255 * alpha).astype(np.uint8)[:, None]
    colors = np.concatenate([table(paint.color_map), opaque], axis=1)
    colors.flags.writeable = False
    return colors


def paint(*, scale: Scale, color_map: str | None = None, opacity: Literal["value"] | float = "value") -> Paint:
    """Return how a scale is painted: the default map of its kind, and opacity by value or alike everywhere.

    Raises
    ------
    InputError
        For an opacity that is neither `"value"` nor a number from 0 to 1.
    """
    name = color_map or (DIVERGING if scale.kind == "diverging" else SEQUENTIAL)
    table(name)
    if opacity == "value":
        return Paint(color_map=name)
    if isinstance(opacity, bool) or not isinstance(opacity, int | float):
        raise InputError(
            f'opacity={opacity!r} is no opacity. It is "value", or a number from 0 to 1. Pass one of those.'
        )
    if isinstance(opacity, str) or not 0.0 <= opacity <= 1.0:
        raise InputError(
            f'opacity={opacity!r} is neither "value" nor a number from 0 to 1. '
            '"value" lets weak places be transparent, a number covers all alike. Pass one of the two.'
        )
    return Paint(color_map=name, opacity=float(opacity), by_value=False)


def choose(
    values: Float[np.ndarray, " value"],
    *,
    how: str | Scale = "percentile",
    percentile: float = 99.0,
    signed: bool = False,
    uniform: float | None = None,
) -> Scale:
    """Return the scale for some values.

    Parameters
    ----------
    values
        All that are to be drawn on it; finite.
    how
        `percentile`: from the (100 - percentile)th to the percentile-th. `max`: from zero to the
        largest. `absolute`: from zero to ten times the uniform share, the same numbers for every
        picture of a model. Or a scale of your own.
    signed
        A diverging scale, as far below zero as above.
    uniform
        What a map that looks at everything alike would give, if known.

    Raises
    ------
    InputError
        For an unknown `how`, a percentile that is not above 50 and at most 100, or `absolute`
        where no uniform share is known.
    """
    if isinstance(how, Scale):
        return how
    if how not in ("percentile", "absolute", "max"):
        raise InputError(
            f'scale={how!r} is not known. It is "percentile", "absolute", "max" or a Scale. Pass one of those.'
        )
    if not 50.0 < percentile <= 100.0:
        raise InputError(f"percentile={percentile:g} is out of range. It is above 50 and at most 100. Try 99.")
    chosen = f"percentile {percentile:g}" if how == "percentile" else how
    if values.size == 0:
        return Scale(vmin=0.0, vmax=1.0, chosen=chosen, flat=True)
    if how == "absolute":
        return _absolute(uniform, signed)
    if signed:
        return _diverging(values, percentile if how == "percentile" else 100.0, chosen)
    if how == "max":
        return _from_zero(values, chosen)
    low, high = np.percentile(values, [100.0 - percentile, percentile]).tolist()
    return _spread(values, low, high, chosen)


def shared(values: Sequence[Float[np.ndarray, " _"]], *, percentile: float = 99.0, signed: bool = False) -> Scale:
    """Return one scale for several maps that are compared: by percentile over all of them together."""
    scale = choose(np.concatenate(list(values)), percentile=percentile, signed=signed)
    return replace(scale, chosen="shared")


def number(value: float, *, span: float = 0.0) -> str:
    """Return a number for a tick: two or three digits that matter, no longer than needed.

    What is under a two-thousandth of the `span` of the scale is nothing that the eye could see, and is `0`.

    Examples
    --------
    >>> number(0.012345), number(0.0), number(0.000012), number(125.0), number(1876.0), number(3e-9, span=0.04)
    ('0.0123', '0', '1.2e-5', '125', '1876', '0')
    """
    if abs(value) <= span / 2000:
        return "0"
    if not 1e-4 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def paper_map(scale: Scale) -> str:
    """Return the map for colors on white paper, under letters: from light to dark, or diverging."""
    return DIVERGING if scale.kind == "diverging" else PAPER


def reads_white(ground: UInt8[np.ndarray, "word 3"]) -> Bool[np.ndarray, " word"]:
    """Say where letters on a color are white rather than black, for the higher contrast.

    Examples
    --------
    >>> reads_white(np.array([[255, 255, 0], [0, 0, 139]], np.uint8)).tolist()
    [False, True]
    """
    return contrast(ground, WHITE) > contrast(ground, BLACK)


def contrast(ground: UInt8[np.ndarray, "word 3"], ink: Color) -> Float[np.ndarray, " word"]:
    """Return the contrast of two colors as WCAG 2.2 defines it, from 1 to 21."""
    lights = [_luminance(np.asarray(one, np.float64)) for one in (ground, ink)]
    ratio: np.ndarray = (np.maximum(*lights) + 0.05) / (np.minimum(*lights) + 0.05)
    return ratio


def _luminance(rgb: Float[np.ndarray, "*color 3"]) -> Float[np.ndarray, "*color"]:
    share = rgb / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def _spread(values: Float[np.ndarray, " value"], low: float, high: float, chosen: str) -> Scale:
    """Widen a span that is narrower than the level of its values, so that what is flat looks flat.

    A few peaks over a flat ground are no flat map: the scale then ends at the highest of them.
    """
    level = float(np.abs(np.clip(values, low, high)).mean())
    if high - low <= level:
        high, level = max(high, float(values.max())), float(np.abs(values).mean())
    if high - low >= max(level, 1e-30):
        return Scale(vmin=low, vmax=high, chosen=chosen)
    span = level if level > 1e-30 else 1.0
    vmin = (low + high) / 2 - _LEAST_SHARE * span
    if low >= 0:
        vmin = max(0.0, vmin)
    return Scale(vmin=vmin, vmax=vmin + span, chosen=chosen, flat=(high - low) < span / 4)


def _from_zero(values: Float[np.ndarray, " value"], chosen: str) -> Scale:
    """From zero (or the smallest, if below) to the largest; a flat map stays at a quarter of it."""
    low, high, level = float(min(values.min(), 0.0)), float(values.max()), float(np.abs(values).mean())
    flat = float(values.max() - values.min()) < max(level, 1e-30) / 4
    top = max(high, level / _LEAST_SHARE) if flat else high
    return Scale(vmin=low, vmax=top if top > low else low + 1.0, chosen=chosen, flat=flat)


def _diverging(values: Float[np.ndarray, " value"], percentile: float, chosen: str) -> Scale:
    reach = float(np.percentile(np.abs(values), percentile)) or float(np.abs(values).max())
    flat = reach <= 1e-30
    reach = 1.0 if flat else reach
    return Scale(vmin=-reach, vmax=reach, kind="diverging", chosen=chosen, flat=flat)


def _absolute(uniform: float | None, signed: bool) -> Scale:
    if uniform is None or uniform <= 0 or signed:
        raise InputError(
            'scale="absolute" needs a known uniform share, and this relevance has none (it is signed, or not a share). '
            "An absolute scale runs from zero to ten times that share. "
            "Pass the numbers yourself: scale=Scale(vmin=..., vmax=...)."
        )
    return Scale(vmin=0.0, vmax=10.0 * uniform, chosen="absolute")
