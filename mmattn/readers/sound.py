"""Recordings from outside, as `Sound`: one channel of float32 at the rate that is asked.

What is decided here, once, for all of mmattn:

- Channels are averaged (librosa's `to_mono`), not weighted as a cinema's surround mix is.
- A second is a second of the player: sound that begins late in a video, or that misses packets, gets
  silence where there is none, so that the times of words are those that one sees while playing.
- A file is decoded frame by frame into one growing buffer: an hour at 16 kHz takes 230 MB, whatever
  its own rate, channels and pictures. Longer than `MAX_S` is refused.
- Silence is no recording: nothing in it can be aligned, so it raises here and not three steps later.
- Damaged packets are left out, and the name of the sound says how many.
- Only containers of sound and of video are tried: a playlist that names other files or addresses is none.
"""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.media import Sound

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

#: The longest recording, in seconds of sound.
MAX_S = 6 * 3600.0

#: The rate that speech models listen at.
SPEECH_HZ = 16_000

#: Below this no sample differs from silence: -90 dB, a step of 16 bits.
SILENCE = 2.0**-15

# What FFmpeg may open, by its names. No playlists, no concatenations, no network.
_CONTAINERS = (
    "wav,w64,aiff,au,caf,flac,mp3,ogg,aac,amr,ac3,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpegts,mpeg"
)
# A hole in the times of a track that is longer than this is filled with silence.
_HOLE_S = 0.05
_MOST_CHANNELS = 32


def read_sound(source: Any, *, rate_hz: int = SPEECH_HZ, name: str | None = None) -> Sound:
    """Return a mono `Sound` at `rate_hz` from a file of sound or video, bytes, or samples.

    Parameters
    ----------
    source
        A path, the bytes of a file (wav, flac, mp3, ogg, m4a, mp4, mkv, webm, ...), a pair `(samples, rate in Hz)`,
        a `Sound`, or samples alone, which are taken to be at `rate_hz`. Samples are an array or a tensor, `[sample]`,
        `[channel, sample]` or `[sample, channel]` (the shorter side is channels): floats, full scale at 1, or
        integers of 8 (unsigned), 16 or 32 bits.
    rate_hz
        Samples a second of what comes back. Samples are resampled by a polyphase filter, files by FFmpeg's.
    name
        For captions; by default the file's name.

    Raises
    ------
    InputError
        Missing, empty and foreign files, video without a sound track, silence, no samples, NaN or infinite ones,
        more than `MAX_S` seconds.

    Examples
    --------
    >>> tone = np.sin(np.arange(44_100, dtype=np.float32) / 10)
    >>> sound = read_sound((tone, 44_100))
    >>> sound.rate_hz, sound.duration_s
    (16000, 1.0)

    """
    if not 1_000 <= rate_hz <= 768_000:
        raise InputError(f"A rate of {rate_hz} Hz is no rate of sound. Speech models take 16000. Pass rate_hz=16000.")
    if isinstance(source, Sound):
        return _from_samples(source.samples, source.rate_hz, rate_hz=rate_hz, name=name or source.name)
    if isinstance(source, str | Path):
        return _from_file(Path(source), rate_hz=rate_hz, name=name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoded(io.BytesIO(bytes(source)), rate_hz=rate_hz, name=name or "sound", what="The sound in bytes")
    if isinstance(source, tuple) and len(source) == 2:
        samples, own_hz = source
        return _from_samples(samples, own_hz, rate_hz=rate_hz, name=name or "sound")
    if isinstance(source, np.ndarray | Tensor):
        return _from_samples(source, rate_hz, rate_hz=rate_hz, name=name or "sound")
    raise InputError(
        f"A recording cannot be read from a {type(source).__name__}. It would be a path, the bytes of a file, "
        "(samples, rate in Hz), or an array of samples. Convert it to one of those."
    )


def _from_file(path: Path, *, rate_hz: int, name: str | None) -> Sound:
    if str(path).startswith(("http:/", "https:/")):
        raise InputError(f"'{path}' is a web address, not a file. mmattn reads local files. Download it first.")
    path = path.expanduser()
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, not a recording. Pass one file in it.")
    try:
        with path.open("rb") as file:
            return _decoded(file, rate_hz=rate_hz, name=name or path.name, what=f"'{path}'")
    except FileNotFoundError:
        raise InputError(f"There is no file '{path}'. Check the path, relative to '{Path.cwd()}'.") from None
    except PermissionError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}). Check its permissions.") from None


def _decoded(file: Any, *, rate_hz: int, name: str, what: str) -> Sound:
    """Decode the first sound track of an open file."""
    import av

    if not file.read(1):
        raise InputError(f"{what} is empty (0 bytes). A recording would be a wav, flac or mp3 file. Save it again.")
    file.seek(0)
    try:
        container = av.open(file, mode="r", options={"format_whitelist": _CONTAINERS})
    except (av.FFmpegError, ValueError, UnicodeDecodeError) as error:
        raise InputError(
            f"{what} is no recording that can be read ({_reason(error)}). Read are wav, flac, mp3, ogg, m4a, and the "
            "sound track of mp4, mkv, webm, avi. Check the file in a player, or save it as wav."
        ) from None
    with container:
        if not container.streams.audio:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise InputError(
                f"{what} has no sound track: it holds {kinds}. Words are aligned to a track of sound. "
                "Pass a file with sound."
            )
        samples, damaged = _collected(container, rate_hz=rate_hz, what=what)
    if not len(samples) and damaged:
        raise InputError(
            f"{what} is damaged: none of its {damaged} packets of sound can be decoded. Get the file again, "
            "or save it anew from a program that can open it."
        )
    note = f", {damaged} damaged packets left out" if damaged else ""
    return _checked(samples, rate_hz=rate_hz, name=name + note, what=what)


def _collected(container: "InputContainer", *, rate_hz: int, what: str) -> tuple[Float32[np.ndarray, " sample"], int]:
    """Return all samples of the first track, and how many packets were damaged."""
    held = bytearray()
    frames = _Frames(container)
    start_s = (container.start_time or 0) / 1_000_000
    resampler, form = None, None
    for frame in frames:
        own = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or own != form:
            held += b"" if resampler is None else b"".join(map(_mono, resampler.resample(None)))
            resampler, form = _resampler(rate_hz), own
        if frame.time is not None:
            hole_s = frame.time - start_s - len(held) / 4 / rate_hz
            if hole_s > _HOLE_S:
                _within(len(held) / 4 / rate_hz + hole_s, what=what)
                held += bytes(4 * round(hole_s * rate_hz))
        frame.pts = None  # times are kept here; the resampler would complain of holes
        held += b"".join(map(_mono, resampler.resample(frame)))
        _within(len(held) / 4 / rate_hz, what=what)
    if resampler is not None:
        held += b"".join(map(_mono, resampler.resample(None)))
    return np.frombuffer(held, dtype=np.float32), frames.damaged


class _Frames:
    """The frames of the first sound track, one after the other; what cannot be decoded is counted and left out."""

    def __init__(self, container: "InputContainer") -> None:
        self.container = container
        self.damaged = 0

    def __iter__(self) -> Iterator["av.AudioFrame"]:
        import av

        packets = self.container.demux(self.container.streams.audio[0])
        while True:
            try:
                packet = next(packets)
                yield from packet.decode()
            except StopIteration:
                return
            except av.error.EOFError:
                return
            except (av.FFmpegError, ValueError):
                self.damaged += 1
                if self.damaged > 10_000:
                    return


def _resampler(rate_hz: int) -> "av.AudioResampler":
    import av

    return av.AudioResampler(format="fltp", rate=rate_hz)


def _mono(frame: "av.AudioFrame") -> bytes:
    """Return the average of a frame's channels, as bytes of float32."""
    averaged: Float32[np.ndarray, " sample"] = frame.to_ndarray().mean(axis=0, dtype=np.float32)
    return averaged.tobytes()


def _within(seconds: float, *, what: str) -> None:
    if seconds > MAX_S:
        raise InputError(
            f"{what} is longer than {MAX_S / 3600:g} hours. So much is not held in memory at once. "
            "Cut the recording into parts, for example with ffmpeg -f segment."
        )


def _from_samples(samples: Any, own_hz: Any, *, rate_hz: int, name: str) -> Sound:
    """Bring given samples to mono float32 at the rate."""
    if isinstance(own_hz, bool) or not isinstance(own_hz, int | float | np.number) or not 1_000 <= own_hz <= 768_000:
        raise InputError(
            f"A rate of {own_hz!r} is no rate of sound. It is in samples a second, such as 16000. "
            "Pass audio=(samples, rate)."
        )
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        samples = samples.float().numpy() if samples.dtype in (torch.float16, torch.bfloat16) else samples.numpy()
    array = np.asarray(samples)
    if array.dtype.kind not in "iuf":
        raise InputError(
            f"Samples of type {array.dtype} are no sound. They are floats with full scale at 1, or integers of 16 "
            "bits. Convert them."
        )
    mono = _averaged(_full_scale(array))
    _within(len(mono) / own_hz, what="The array of samples")
    if len(mono) and not np.isfinite(mono).all():
        bad = np.flatnonzero(~np.isfinite(mono))
        raise InputError(
            f"{len(bad)} of {len(mono)} samples are NaN or infinite, the first at {bad[0] / own_hz:.3f} s. "
            "Sound is finite numbers. Look for a division by the loudest sample of a silent stretch."
        )
    if round(float(own_hz)) != rate_hz and len(mono):
        mono = _resampled(mono, own_hz=round(float(own_hz)), rate_hz=rate_hz)
    return _checked(mono, rate_hz=rate_hz, name=name, what="The array of samples")


def _full_scale(array: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Return samples as floats with full scale at 1."""
    if array.dtype.kind == "f":
        loudest = float(np.abs(array).max()) if array.size else 0.0
        if math.isfinite(loudest) and loudest > 64:
            raise InputError(
                f"Samples in floats reach {loudest:g}. Full scale is 1. Divide by 32768 if they were integers of 16 "
                "bits, or pass those as they are."
            )
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    scaled: Float32[np.ndarray, "..."] = (array / (float(np.iinfo(array.dtype).max) + 1)).astype(np.float32)
    return scaled


def _averaged(array: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, " sample"]:
    if array.ndim == 1:
        return np.ascontiguousarray(array)
    channels = min(array.shape) if array.ndim == 2 else 0
    if array.ndim != 2 or not 0 < channels <= _MOST_CHANNELS:
        raise InputError(
            f"Samples of shape {list(array.shape)} are no recording. They are [sample], or with up to "
            f"{_MOST_CHANNELS} channels [channel, sample] or [sample, channel]. Pass a list of recordings for several."
        )
    mono: Float32[np.ndarray, " sample"] = array.mean(axis=int(np.argmin(array.shape)), dtype=np.float32)
    return mono


def _resampled(
    samples: Float32[np.ndarray, " sample"], *, own_hz: int, rate_hz: int
) -> Float32[np.ndarray, " resampled"]:
    from scipy.signal import resample_poly  # type: ignore[import-untyped]  # it brings no types

    shared = math.gcd(own_hz, rate_hz)
    out = resample_poly(samples, rate_hz // shared, own_hz // shared)
    resampled: Float32[np.ndarray, " resampled"] = out.astype(np.float32)
    return resampled


def _checked(samples: Float32[np.ndarray, " sample"], *, rate_hz: int, name: str, what: str) -> Sound:
    if not len(samples):
        raise InputError(f"{what} holds no samples: it is 0 s long. Words need sound. Pass a longer recording.")
    loudest = float(max(samples.max(), -samples.min()))
    if not math.isfinite(loudest):
        raise InputError(f"{what} holds samples that are NaN or infinite. Sound is finite numbers. Save it again.")
    if loudest < SILENCE:
        raise InputError(
            f"{what} is silent: in {len(samples) / rate_hz:.2f} s its loudest sample is {loudest:.1g} of full scale. "
            "Words need sound. Check the microphone, the track and its volume."
        )
    return Sound(samples=samples, rate_hz=rate_hz, name=name)


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error).split("\n")[0]
    return said.rstrip(".")[:120] or type(error).__name__
