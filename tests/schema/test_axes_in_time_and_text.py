"""Timelines with padding and windows; texts with bytes, words and scripts without spaces."""

import numpy as np
import pytest

from mmattn.errors import InputError, NotFoundError, PlaceError
from mmattn.schema.axes import Nodes, Positions, Slots, SpectrogramGrid, Timeline, Tokens, TubeletGrid


def test_tokens_in_the_padding_are_pad_and_the_last_one_ends_with_the_audio():
    axis = Timeline.plain(count=1500, hop_s=0.01, stride=2, audio_s=3.51)
    assert axis.place(175) == (3.5, 3.51)
    assert axis.special()["pad"] == list(range(176, 1500))
    with pytest.raises(PlaceError, match=r"did not hear 12 s: it heard 0 to 3.51 s"):
        axis.token_at(12.0)


def test_an_end_of_audio_on_a_token_edge_leaves_no_sliver():
    for frames in range(1, 200):
        axis = Timeline.plain(count=1500, hop_s=0.01, stride=2, audio_s=frames * 320 / 16000)
        assert len(axis.content) == frames


def test_a_later_window_owns_what_it_hears_again():
    axis = Timeline.plain(count=10, hop_s=0.1, stride=1, audio_s=1.45, offsets_s=[0.0, 0.75])
    assert axis.place(7) == (0.7, 0.75)
    assert axis.place(10) == (0.75, 0.85)
    assert axis.special() == {"overlap": [8, 9], "pad": list(range(17, 20))}
    assert axis.token_at(0.8) == 10


def test_time_between_windows_was_not_heard():
    axis = Timeline.plain(count=3, hop_s=0.1, stride=1, audio_s=2.0, offsets_s=[0.0, 1.0])
    with pytest.raises(PlaceError, match="less the gaps between its windows"):
        axis.token_at(0.5)


def test_windows_that_run_backwards_are_refused():
    with pytest.raises(InputError, match="ascending"):
        Timeline.plain(count=3, hop_s=0.1, stride=1, audio_s=5.0, offsets_s=[1.0, 0.0])


def test_frequency_major_patches_walk_through_time_first():
    axis = SpectrogramGrid.plain(edges_s=[0.0, 1.0, 2.0], edges_hz=[0.0, 100.0, 400.0], order="frequency")
    assert [axis.place(t) for t in range(3)] == [
        (0.0, 1.0, 0.0, 100.0),
        (1.0, 2.0, 0.0, 100.0),
        (0.0, 1.0, 100.0, 400.0),
    ]
    assert axis.grid(np.arange(4.0)).tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_hwt_tubelets_walk_through_time_first():
    axis = TubeletGrid.plain(
        rows=1,
        cols=2,
        patch_px=(8, 8),
        size_px=(16, 8),
        frames=[0, 10],
        times_s=[0.0, 0.5],
        depth=1,
        order="h w t",
        special=("cls",),
    )
    assert axis.place(2) == (0.0, 0.0, 8.0, 8.0, 0.5, 1.0)
    assert axis.grid(np.arange(5.0)).tolist() == [[[1.0, 3.0]], [[2.0, 4.0]]]


def test_a_frame_that_is_sampled_twice_cannot_stand_in_two_cells():
    with pytest.raises(InputError, match="along t are not ascending"):
        TubeletGrid.plain(
            rows=1,
            cols=1,
            patch_px=(8, 8),
            size_px=(8, 8),
            frames=[0, 0],
            times_s=[0.0, 0.0],
            depth=1,
            order="t h w",
            frame_s=0.1,
        )


def test_the_first_of_several_bytes_owns_the_character():
    axis = Tokens.of("hi 🎉!", pieces=["hi", "Ġð", "Ł", "İ", "!"], spans=[(0, 2), (3, 4), (3, 4), (3, 4), (4, 5)])
    assert axis.roles == ("content", "content", "continuation", "continuation", "content")
    assert axis.token_at(3) == 1
    assert [(w.text, w.tokens) for w in axis.words()] == [("hi", (0,)), ("🎉", (1, 2, 3)), ("!", (4,))]


def test_pieces_that_share_characters_are_cut_and_empty_ones_are_blank():
    axis = Tokens.of("abcd", pieces=["▁", "abc", "bcd"], spans=[(0, 0), (0, 3), (1, 4)])
    assert axis.roles == ("blank", "content", "content")
    assert axis.place(2) == (3, 4)


def test_words_are_found_as_a_person_types_them():
    axis = Tokens.of(
        "The cat saw a Cat, the black cat.",
        pieces=["The", " c", "at", " saw", " a", " Cat", ",", " the", " black", " cat", "."],
        spans=[(0, 3), (3, 5), (5, 7), (7, 11), (11, 13), (13, 17), (17, 18), (18, 22), (22, 28), (28, 32), (32, 33)],
    )
    assert axis.words()[1].text == "cat"
    assert axis.words()[1].span == (4, 7)
    assert axis.tokens_of_word("cat").tolist() == [1, 2]
    assert axis.tokens_of_word("cat", occurrence=-1).tolist() == [9]
    assert axis.tokens_of_word("Cat").tolist() == [5]
    assert axis.tokens_of_word("SAW").tolist() == [3]
    assert axis.tokens_of_word("black cat").tolist() == [8, 9]
    assert axis.tokens_in((5, 8)).tolist() == [2, 3]
    with pytest.raises(NotFoundError, match=r"There is no word 'cats' in the text. Its words are: cat"):
        axis.tokens_of_word("cats")
    with pytest.raises(NotFoundError, match=r"The word 'cat' stands 2 time\(s\)"):
        axis.tokens_of_word("cat", occurrence=2)


def test_scripts_without_spaces_are_split_by_character():
    axis = Tokens.of(
        "猫が好きdeath", pieces=[*list("猫が好き"), "death"], spans=[(0, 1), (1, 2), (2, 3), (3, 4), (4, 9)]
    )
    assert [w.text for w in axis.words()] == ["猫", "が", "好", "き", "death"]
    assert axis.tokens_of_word("好き").tolist() == [2, 3]


def test_a_space_between_pieces_is_in_no_token():
    axis = Tokens.of("a cat", pieces=["[CLS]", "a", "cat"], spans=[None, (0, 1), (2, 5)])
    with pytest.raises(PlaceError, match=r"Character 1 \(' '\) of the text is in no token"):
        axis.token_at(1)
    with pytest.raises(PlaceError, match="it has 5 characters"):
        axis.token_at(7)


def test_a_text_of_ten_thousand_pieces_is_built_in_a_moment():
    text = "word " * 10_000
    spans = [(5 * i, 5 * i + 4) for i in range(10_000)]
    axis = Tokens.of(text, pieces=["word"] * 10_000, spans=spans)
    assert len(axis.words()) == 10_000


def test_a_moment_that_no_frame_was_sampled_for_was_not_seen():
    axis = TubeletGrid.plain(
        rows=2,
        cols=2,
        patch_px=(8, 8),
        size_px=(64, 48),
        frames=[25, 50],
        times_s=[1.0, 2.0],
        depth=1,
        order="t h w",
        frame_s=0.04,
    )
    assert axis.token_at((40.0, 10.0, 2.03)) == 5
    assert axis.tokens_in((0, 0, 64, 24, 1.0, 2.0)).tolist() == [0, 1]
    assert axis.seen_box() == (0.0, 0.0, 64.0, 48.0)
    for point in ((40.0, 10.0, 2.04), (40.0, 10.0, 0.9), (64.0, 10.0, 1.5)):
        with pytest.raises(PlaceError, match=r"did not see .* from 1 to 2.04 s"):
            axis.token_at(point)


def test_frames_that_fill_no_tubelet_are_refused():
    with pytest.raises(InputError, match="3 frames do not make tubelets of 2"):
        TubeletGrid.plain(
            rows=1,
            cols=1,
            patch_px=(8, 8),
            size_px=(8, 8),
            frames=[0, 1, 2],
            times_s=[0.0, 1.0, 2.0],
            depth=2,
            order="t h w",
        )


def test_a_frequency_above_the_band_was_not_heard():
    axis = SpectrogramGrid.plain(
        edges_s=[0.0, 1.0, 2.0, 3.0], edges_hz=[0.0, 100.0, 400.0], order="time", sound_s=1.5, special=("cls",)
    )
    assert axis.special() == {"cls": [0], "pad": [5, 6]}
    assert axis.seen_box() == (0.0, 2.0, 0.0, 400.0)
    for point in ((1.0, 400.0), (2.5, 50.0)):
        with pytest.raises(PlaceError, match=r"did not hear .* It heard 0 to 400 Hz, from 0 to 2 s"):
            axis.token_at(point)


def test_numbered_tokens_outside_the_range_are_refused():
    for axis in (Positions.count(3), Slots.count(3), Nodes.count(3)):
        assert axis.tokens_in((1, 9)).tolist() == [1, 2]
        with pytest.raises(PlaceError):
            axis.tokens_in((5, 9))


def test_two_tokens_of_one_node_are_refused():
    with pytest.raises(InputError, match="Each node has its own id"):
        Nodes(roles=("content", "content"), ids=np.array([4, 4]))
    with pytest.raises(InputError, match="2 labels do not fit 3 nodes"):
        Nodes.count(3, labels=("a", "b"))
