"""Recordings of every kind come in as one channel at the rate that is asked, in time, or are refused in one line."""

import io
import tracemalloc
import wave

import av
import numpy as np
import pytest
import torch

from mmattn.errors import InputError
from mmattn.readers import read_sound, sound

#: Where the two beeps of `beeps` begin and end.
BEEPS_S = ((0.5, 0.7), (1.2, 1.5))


def beeps(rate_hz=44_100, seconds=2.0, loud=0.5):
    times = np.arange(round(rate_hz * seconds)) / rate_hz
    on = np.any([(times >= start) & (times < end) for start, end in BEEPS_S], axis=0)
    return (loud * np.sin(2 * np.pi * 1000 * times) * on).astype(np.float32)


def encoded(channels, *, rate_hz, container, codec, layout, start_s=0.0):
    """Samples `[channel, sample]` as the bytes of a file; `start_s`: where the track begins in it, beside a picture."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        video = out.add_stream("libx264", rate=10) if start_s else None
        stream = out.add_stream(codec, rate=rate_hz, layout=layout)
        if video is not None:
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for _ in range(20):
                out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
            out.mux(video.encode(None))
        for begin in range(0, channels.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(channels[:, begin : begin + 1024]), format="fltp", layout=layout
            )
            frame.sample_rate, frame.pts = rate_hz, begin + round(start_s * rate_hz)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def beeps_heard(read):
    """When beeps begin and end, by the envelope over 5 ms."""
    width = round(read.rate_hz * 0.005)
    loud = np.convolve(np.abs(read.samples), np.ones(width) / width, mode="same") > 0.1
    edges = np.flatnonzero(np.diff(loud.astype(int)))
    return (edges / read.rate_hz).tolist()


KINDS = {
    "wav": ("wav", "pcm_s16le"),
    "flac": ("flac", "flac"),
    "mp3": ("mp3", "libmp3lame"),
    "oga": ("ogg", "flac"),
    "ogg": ("ogg", "libopus"),
    "m4a": ("mp4", "aac"),
    "webm": ("webm", "libopus"),
    "mka": ("matroska", "pcm_f32le"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rate_hz", "layout"), [(48_000, "stereo"), (16_000, "mono")])
def test_sound_of_every_container_is_mono_and_in_time(tmp_path, kind, rate_hz, layout):
    container, codec = KINDS[kind]
    channels = np.tile(beeps(rate_hz), (2 if layout == "stereo" else 1, 1))
    path = tmp_path / f"talk.{kind}"
    path.write_bytes(encoded(channels, rate_hz=rate_hz, container=container, codec=codec, layout=layout))
    read = read_sound(path)
    assert (read.rate_hz, read.name, read.samples.dtype) == (16_000, f"talk.{kind}", np.float32)
    assert read.duration_s == pytest.approx(2.0, abs=0.06)  # some codecs end on a whole frame of theirs
    assert beeps_heard(read) == pytest.approx([0.5, 0.7, 1.2, 1.5], abs=0.006)
    loudest = np.abs(read.samples[round(0.55 * 16_000) : round(0.65 * 16_000)]).max()
    assert loudest == pytest.approx(0.5, abs=0.05)


def test_lossless_sound_at_its_own_rate_comes_back_bit_for_bit():
    samples = np.random.default_rng(0).integers(-20_000, 20_000, 16_000).astype(np.int16)
    data = encoded(
        samples[None].astype(np.float32) / 32_768, rate_hz=16_000, container="wav", codec="pcm_s16le", layout="mono"
    )
    assert np.array_equal(read_sound(data).samples * 32_768, samples)


def test_channels_are_averaged():
    left, right = beeps(16_000), np.zeros(32_000, np.float32)
    data = encoded(np.stack([left, right]), rate_hz=16_000, container="matroska", codec="pcm_f32le", layout="stereo")
    assert np.allclose(read_sound(data).samples, left / 2)


def test_six_channels_are_read():
    channels = np.tile(beeps(48_000), (6, 1))
    data = encoded(channels, rate_hz=48_000, container="flac", codec="flac", layout="5.1")
    assert beeps_heard(read_sound(data)) == pytest.approx([0.5, 0.7, 1.2, 1.5], abs=0.006)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_sound_that_begins_late_in_a_video_keeps_the_time_of_the_player(container):
    data = encoded(beeps(16_000)[None], rate_hz=16_000, container=container, codec="aac", layout="mono", start_s=0.8)
    assert beeps_heard(read_sound(data)) == pytest.approx([1.3, 1.5, 2.0, 2.3], abs=0.01)


def test_every_way_to_give_samples_is_the_same_recording():
    mono = beeps(16_000)
    stereo = np.stack([mono, mono])
    ways = [
        mono,
        torch.from_numpy(mono),
        torch.from_numpy(stereo),
        (stereo.T, 16_000),
        (stereo.T.astype(np.float64), np.int64(16_000)),
        read_sound(mono),
    ]
    for way in ways:
        assert np.allclose(read_sound(way).samples, mono, atol=1e-6)
    assert np.allclose(read_sound(((mono * 32_767).astype(np.int16), 16_000)).samples, mono, atol=1e-4)
    assert np.allclose(read_sound(((mono * 127 + 128).round().astype(np.uint8), 16_000)).samples, mono, atol=0.01)


@pytest.mark.parametrize("own_hz", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_samples_and_files_of_any_rate_are_resampled_alike(own_hz):
    samples = beeps(own_hz)
    given = read_sound((samples, own_hz)).samples
    data = encoded(samples[None], rate_hz=own_hz, container="wav", codec="pcm_f32le", layout="mono")
    from_file = read_sound(data).samples
    inside = slice(round(0.52 * 16_000), round(0.68 * 16_000))
    assert abs(len(given) - len(from_file)) <= 16
    assert np.abs(given[inside] - from_file[inside]).max() < 0.01


def test_a_long_recording_is_held_once():
    """Ten minutes of 48 kHz stereo would be 230 MB in floats; what comes back is 38 MB."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (2, 48_000)).astype(np.float32)
    data = encoded(np.tile(noise, (1, 600)), rate_hz=48_000, container="flac", codec="flac", layout="stereo")
    tracemalloc.start()
    read = read_sound(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.duration_s == pytest.approx(600, abs=0.01)
    assert peak < 2 * read.samples.nbytes + len(data)


def test_damaged_packets_are_left_out_and_told():
    data = bytearray(encoded(beeps(16_000)[None], rate_hz=16_000, container="matroska", codec="flac", layout="mono"))
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    try:
        read = read_sound(bytes(data))
    except InputError as error:
        pytest.fail(f"refused: {error}")
    assert read.duration_s > 1.0


def test_what_is_no_sound_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes.wav").write_text("these are words, not sound\n" * 50)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.txt").write_text("ffconcat version 1.0\nfile notes.wav\n")
    said = {
        "notes.wav": "is no recording that can be read",
        "empty.wav": "is empty \\(0 bytes\\)",
        "list.m3u8": "is no recording that can be read",
        "concat.txt": "is no recording that can be read",
        "none.wav": "There is no file",
        "": "is a folder",
    }
    for name, message in said.items():
        with pytest.raises(InputError, match=message):
            read_sound(tmp_path / name)
    with pytest.raises(InputError, match="web address"):
        read_sound("https://example.org/talk.wav")
    with pytest.raises(InputError, match="cannot be read from a int"):
        read_sound(5)


def test_a_video_without_a_sound_track_says_what_it_holds():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        out.mux(stream.encode(None))
    with pytest.raises(InputError, match="has no sound track: it holds video"):
        read_sound(buffer.getvalue())


def test_silence_and_nothing_are_refused():
    silent = encoded(
        np.zeros((1, 16_000), np.float32), rate_hz=16_000, container="wav", codec="pcm_s16le", layout="mono"
    )
    with pytest.raises(InputError, match="is silent: in 1.00 s"):
        read_sound(silent)
    with pytest.raises(InputError, match="is silent"):
        read_sound(np.zeros(100, np.float32))
    with pytest.raises(InputError, match="0 s long"):
        read_sound(np.zeros(0, np.float32))
    nothing = io.BytesIO()
    with wave.open(nothing, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
    with pytest.raises(InputError, match="0 s long"):
        read_sound(nothing.getvalue())


def test_samples_that_are_no_sound_are_refused():
    broken = beeps(16_000)
    broken[8_000] = np.nan
    with pytest.raises(InputError, match="1 of 32000 samples are NaN or infinite, the first at 0.500 s"):
        read_sound(broken)
    with pytest.raises(InputError, match="reach 16384"):
        read_sound((beeps(16_000) * 32_768).astype(np.float32))
    with pytest.raises(InputError, match=r"shape \[100, 200\]"):
        read_sound(np.zeros((100, 200), np.float32))
    with pytest.raises(InputError, match="type bool"):
        read_sound(np.zeros(100, bool))
    with pytest.raises(InputError, match="rate of 0"):
        read_sound((beeps(), 0))
    with pytest.raises(InputError, match="Pass rate_hz=16000"):
        read_sound(beeps(), rate_hz=16)


def test_longer_than_the_limit_is_refused_while_reading(monkeypatch):
    monkeypatch.setattr(sound, "MAX_S", 1.0)
    data = encoded(beeps(16_000)[None], rate_hz=16_000, container="wav", codec="pcm_s16le", layout="mono")
    with pytest.raises(InputError, match="is longer than"):
        read_sound(data)
    with pytest.raises(InputError, match="is longer than"):
        read_sound(beeps(16_000))
