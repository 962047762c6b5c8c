"""Scales: monotone, honest about flat maps, named errors; color maps close to the originals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib import colormaps

from mmattn.errors import InputError, NotFoundError
from mmattn.render import Paint, Scale, color

positive = arrays(np.float64, st.integers(1, 60), elements=st.floats(0.0, 1e3, allow_subnormal=False))
signed = arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e3, 1e3, allow_subnormal=False))
how = st.sampled_from(["percentile", "max"])


@given(values=positive, how=how, percentile=st.floats(51, 100))
def test_a_scale_keeps_order_and_stays_within_its_ends(values: np.ndarray, how: str, percentile: float) -> None:
    scale = color.choose(values, how=how, percentile=percentile)
    drawn = scale.normalize(np.sort(values)[None])[0]
    assert scale.vmin < scale.vmax
    assert (np.diff(drawn) >= 0).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1


@given(values=positive, how=how)
def test_a_share_of_nothing_is_never_above_the_low_end(values: np.ndarray, how: str) -> None:
    assert color.choose(values, how=how).normalize(np.zeros((1, 1)))[0, 0] == pytest.approx(0, abs=1e-9)


@given(values=signed)
def test_a_signed_scale_is_as_far_below_zero_as_above(values: np.ndarray) -> None:
    scale = color.choose(values, signed=True)
    assert scale.kind == "diverging"
    assert scale.vmin == -scale.vmax
    assert scale.normalize(np.zeros((1, 1)))[0, 0] == 0.5


@given(level=st.floats(1e-6, 1e3), noise=st.floats(0, 0.1), seed=st.integers(0, 99), how=how)
def test_a_flat_map_takes_up_little_of_the_colors(level: float, noise: float, seed: int, how: str) -> None:
    values = level * (1 + noise * np.random.default_rng(seed).uniform(-1, 1, 200))
    scale = color.choose(values, how=how)
    drawn = scale.normalize(values[None])
    assert scale.flat
    assert np.ptp(drawn) <= 0.25
    assert drawn.max() < 0.5


@given(level=st.floats(1e-6, 1e3), peak=st.floats(4, 1e3))
def test_one_peak_over_a_flat_ground_uses_the_whole_scale(level: float, peak: float) -> None:
    values = np.full(196, level)
    values[7] = peak * level
    scale = color.choose(values)
    drawn = scale.normalize(values[None])[0]
    assert not scale.flat
    assert drawn[7] == 1
    assert drawn[0] < 0.3


def test_a_map_of_zeros_has_a_scale_and_is_flat() -> None:
    for signs in (False, True):
        scale = color.choose(np.zeros(9), signed=signs)
        assert scale.flat
        assert np.isfinite(scale.normalize(np.zeros((3, 3)))).all()


def test_an_absolute_scale_is_the_same_for_every_picture() -> None:
    one = color.choose(np.array([0.1, 0.2]), how="absolute", uniform=0.01)
    two = color.choose(np.array([0.9]), how="absolute", uniform=0.01)
    assert one == two
    assert (one.vmin, one.vmax) == (0.0, 0.1)


def test_a_shared_scale_is_that_of_all_values_together() -> None:
    one, two = np.linspace(0, 1, 50), np.linspace(0, 9, 50)
    both = color.choose(np.concatenate([one, two]))
    assert (color.shared([one, two]).vmax, color.shared([one, two]).chosen) == (both.vmax, "shared")


def test_a_percentile_leaves_a_single_outlier_out() -> None:
    values = np.concatenate([np.linspace(0, 1, 1000), [1000.0]])
    assert color.choose(values).vmax < 1.1
    assert color.choose(values, how="max").vmax == 1000


@pytest.mark.parametrize("name", ["viridis", "inferno", "magma", "cividis", "coolwarm"])
def test_color_maps_are_close_to_the_originals(name: str) -> None:
    original = colormaps[name](np.arange(256) / 255)[:, :3] * 255
    assert np.abs(color.table(name) - original).max() <= 7


@pytest.mark.parametrize("name", [color.SEQUENTIAL, "viridis", "magma", "cividis"])
def test_sequential_maps_grow_lighter_all_the_way(name: str) -> None:
    light = color.table(name).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > -0.75).all()
    assert light[-1] - light[0] > 150


def test_opacity_by_value_grows_and_alone_it_is_constant() -> None:
    by_value = color.lookup(Paint())[:, 3].astype(int)
    assert by_value[0] == 0
    assert (np.diff(by_value) >= 0).all()
    assert set(color.lookup(Paint(opacity=0.5, by_value=False))[:, 3]) == {128}
    both_ways = color.lookup(Paint(color_map="coolwarm"), "diverging")[:, 3].astype(int)
    assert both_ways[0] == both_ways[-1] == by_value[-1]
    assert both_ways[127] < 20


def test_any_map_of_matplotlib_can_be_named() -> None:
    assert color.table("turbo").shape == (256, 3)


def test_bad_options_say_what_is_right() -> None:
    with pytest.raises(NotFoundError, match=r"no color map 'infreno'.*inferno"):
        color.table("infreno")
    with pytest.raises(InputError, match=r"opacity=2.* number from 0 to 1"):
        color.paint(scale=Scale(vmin=0, vmax=1), opacity=2.0)
    with pytest.raises(InputError, match="percentile=30"):
        color.choose(np.ones(3), percentile=30)
    with pytest.raises(InputError, match="scale='log'"):
        color.choose(np.ones(3), how="log")
    with pytest.raises(InputError, match="known uniform share"):
        color.choose(np.ones(3), how="absolute")
    with pytest.raises(InputError, match="vmin < vmax"):
        Scale(vmin=1.0, vmax=1.0)
