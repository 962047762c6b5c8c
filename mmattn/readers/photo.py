"""Pictures from outside, as `Photo`: upright, 8-bit RGB, as a viewer shows them.

What is decided here, once, for all of mmattn:

- EXIF orientation is applied, so every coordinate is one of the upright picture.
- Transparency is dropped, not composited: `convert("RGB")`, which is what timm, torchvision and
  nearly every training pipeline do. The model sees the color stored under a transparent pixel.
- 16-bit values are scaled by 1/257 (65535 becomes 255), never clipped as Pillow's own conversion does.
- An animation gives its first frame, and the name of the photo says so.
- The size that a file declares is checked before a pixel is decoded, and only raster formats are
  tried (Pillow would hand PostScript to Ghostscript).
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from mmattn.errors import InputError
from mmattn.schema.media import Photo

#: The most pixels that a picture may declare: about 180 megapixels, where Pillow itself stops.
MAX_PIXELS = 178_956_970

#: What a photograph comes in, by Pillow's names.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF", "HEIF", "JPEG2000", "MPO", "TGA", "QOI")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def read_photo(source: Any, *, name: str | None = None) -> Photo:
    """Return an upright RGB `Photo` from a file, bytes, a PIL image, an array or a tensor.

    Parameters
    ----------
    source
        A path, the bytes of an image file, a `PIL.Image.Image`, a numpy array `[row, col]` or
        `[row, col, 1|3|4]`, or a torch tensor `[1|3|4, row, col]` or `[row, col]`. Arrays and tensors
        hold uint8, bool, uint16, or floats from 0 to 1; they are pictures, not normalized inputs.
    name
        For captions; by default the file's name.

    Raises
    ------
    InputError
        Missing, empty, corrupt or truncated files, folders, other file types, pictures over
        `MAX_PIXELS`, and arrays whose shape or range is not that of a picture.

    Examples
    --------
    >>> read_photo(np.zeros((480, 640), np.uint16)).size_px
    (640, 480)

    """
    if isinstance(source, Photo):
        return source
    if isinstance(source, Image.Image):
        return _from_pil(source, name=name or _file_name(source), what="the PIL image")
    if isinstance(source, str | Path):
        return _from_file(Path(source), name=name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), name=name or "image", what="the bytes")
    if isinstance(source, Tensor):
        return Photo(pixels=_array_pixels(_rows_last(source), what="the tensor"), name=name or "image")
    if isinstance(source, np.ndarray):
        return Photo(pixels=_array_pixels(source, what="the array"), name=name or "image")
    raise InputError(
        f"A picture cannot be read from a {type(source).__name__}. It would be a path, the bytes of an image file, "
        "a PIL image, a numpy array [row, col, 3] or a tensor [3, row, col]. Convert it to one of those."
    )


def _from_file(path: Path, *, name: str | None) -> Photo:
    if str(path).startswith(("http:/", "https:/")):
        raise InputError(f"'{path}' is a web address, not a file. mmattn reads local files. Download it first.")
    path = path.expanduser()
    if path == Path():
        raise InputError("The picture's path is empty. Pass the path of an image file.")
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, not a picture. Pass one image file in it.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"There is no file '{path}'. Check the path, relative to '{Path.cwd()}'.") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' cannot be read ({getattr(error, 'strerror', None) or error}). Check its permissions."
        ) from None
    return _decode(data, name=name or path.name, what=f"'{path}'")


def _decode(data: bytes, *, name: str, what: str) -> Photo:
    if not data:
        raise InputError(f"{what} is empty (0 bytes). A picture would be a JPEG, PNG or TIFF file. Save it again.")
    Image.init()
    known = [kind for kind in FORMATS if kind in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=known)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(_too_large(what)) from None
    except Exception as error:  # hostile bytes: Pillow's decoders raise nearly anything
        raise InputError(
            f"{what} is no picture that can be read ({_reason(error)}; {len(data)} bytes). "
            f"Read are {', '.join(known)}. Check the file in an image viewer, or save it as PNG."
        ) from None
    with image:
        return _from_pil(image, name=name, what=what)


def _from_pil(image: Image.Image, *, name: str, what: str) -> Photo:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(_too_large(f"{what}, {image.width} x {image.height} px,"))
    try:
        image.load()
        orientation = _orientation(image)
        rgb = _rgb(image, what=what)
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(
            f"{what} is damaged or truncated ({_reason(error)}). It declares {image.width} x {image.height} px. "
            "Get the file again, or save it anew from a program that can open it."
        ) from None
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    animated = (
        getattr(image, "is_animated", False) and image.format != "MPO"
    )  # a phone's photo with its depth or preview
    frames = getattr(image, "n_frames", 1) if animated else 1
    note = f", first of {frames} frames" if frames > 1 else ""
    return Photo(pixels=np.array(rgb, dtype=np.uint8), name=name + note)


def _rgb(image: Image.Image, *, what: str) -> Image.Image:
    """Return the image as 8-bit RGB; equal to `convert("RGB")` for every 8-bit mode."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_deep_pixels(np.asarray(image), mode=image.mode, what=what))
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns on the direct way
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no direct way
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_pixels(values: Shaped[np.ndarray, "row col"], *, mode: str, what: str) -> UInt8[np.ndarray, "row col 3"]:
    """Bring 16-bit gray (modes I;16 and I) and float gray (mode F, 0 to 1) to 8 bits."""
    if mode == "F":
        return _array_pixels(values, what=what)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise InputError(
            f"{what} holds 32-bit values from {values.min()} to {values.max()}. A gray picture has 0 to 65535. "
            "Scale it to 16 bits, or pass a uint8 array."
        )
    return _array_pixels(values.astype(np.uint16), what=what)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or where the tags are broken, as viewers do."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken tags do not make the pixels unreadable
        return 1


def _rows_last(tensor: Shaped[Tensor, "..."]) -> Shaped[np.ndarray, "..."]:
    """Return a tensor `[channel, row, col]` or `[row, col]` as an array with its channels last."""
    shape = tuple(tensor.shape)
    if len(shape) == 4:
        raise InputError(
            f"A tensor of shape {list(shape)} is a batch. A picture is [3, row, col]. "
            "Pass a list of pictures, or inputs= for a tensor that is prepared already."
        )
    if len(shape) == 3 and shape[0] not in (1, 3, 4):
        raise InputError(
            f"A tensor of shape {list(shape)} is no picture. A tensor is read as [channel, row, col] with 1, 3 or 4 "
            "channels. " + ("Pass tensor.permute(2, 0, 1)." if shape[2] in (1, 3, 4) else "Check its axes.")
        )
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    array: Shaped[np.ndarray, "..."] = tensor.numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _array_pixels(array: Shaped[np.ndarray, "..."], *, what: str) -> UInt8[np.ndarray, "row col 3"]:
    """Return 8-bit RGB pixels of an array with channels last."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        turned = array.ndim == 3 and array.shape[0] in (1, 3) and min(array.shape[1:]) > 4
        raise InputError(
            f"{_capital(what)} of shape {list(array.shape)} is no picture. It would be [row, col], or [row, col, "
            f"channel] with 1, 3 or 4 channels. {'Pass np.moveaxis(array, 0, -1).' if turned else 'Check its axes.'}"
        )
    if array.size > 4 * MAX_PIXELS:
        raise InputError(_too_large(f"{_capital(what)} of shape {list(array.shape)}"))
    if array.ndim == 2:
        array = array[:, :, None]
    pixels = _to_bytes(array[:, :, :3], what=what)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _to_bytes(array: Shaped[np.ndarray, "row col channel"], *, what: str) -> UInt8[np.ndarray, "row col channel"]:
    scale: dict[str, Callable[[Any], Any]] = {
        "uint8": lambda values: values,
        "bool": lambda values: values.astype(np.uint8) * np.uint8(255),
        "uint16": lambda values: ((values.astype(np.uint32) + 128) // 257).astype(np.uint8),
    }
    if array.dtype.name in scale:
        pixels: UInt8[np.ndarray, "row col channel"] = scale[array.dtype.name](array)
        return pixels
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{_capital(what)} holds {array.dtype} values. A picture holds uint8 (0 to 255), uint16, bool, or floats "
            "in 0 to 1. Convert it, for example with .astype(np.uint8)."
        )
    return _unit_to_bytes(array, what=what)


def _unit_to_bytes(array: Float[np.ndarray, "row col channel"], *, what: str) -> UInt8[np.ndarray, "row col channel"]:
    if not array.size:
        return array.astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also false for NaN
        raise InputError(
            f"{_capital(what)} holds floats from {low:g} to {high:g}. A picture in floats lies in 0 to 1. "
            "Divide by 255 if it is in bytes; pass it as inputs= if it is normalized for the model."
        )
    pixels: UInt8[np.ndarray, "row col channel"] = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return pixels


def _too_large(what: str) -> str:
    return (
        f"{what} is larger than {MAX_PIXELS:,} pixels. Such a file is likely a decompression bomb. "
        "If it is yours, make it smaller first, for example with Pillow's Image.reduce."
    )


def _reason(error: Exception) -> str:
    text = str(error).split("\n")[0].replace("<_io.BytesIO object at ", "<")
    return "not an image" if text.startswith("cannot identify") or not text else text.rstrip(".")[:120]


def _file_name(image: Image.Image) -> str:
    return Path(getattr(image, "filename", "") or "image").name
