"""Pictures of every kind come in upright, as 8-bit RGB, or are refused in one line."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.errors import InputError
from mmattn.readers import read_photo
from mmattn.readers.photo import MAX_PIXELS


def scene(width=40, height=30):
    """A picture without any symmetry."""
    rows, cols = np.mgrid[0:height, 0:width]
    return np.stack([rows * 8, cols * 6, (rows * cols) % 251], axis=-1).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(orientation):
    """The bytes of a PNG whose viewer shows `scene()`, stored turned as a camera with this orientation does."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = Image.fromarray(scene())
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image if undo is None else image.transpose(undo), "PNG", exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    assert np.array_equal(read_photo(with_orientation(orientation)).pixels, scene())
    if orientation >= 5:
        assert Image.open(io.BytesIO(with_orientation(orientation))).size == (30, 40)


def test_exif_orientation_of_a_jpeg_is_that_of_pillows_own_transpose(tmp_path):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "camera.jpg"
    Image.fromarray(scene()).save(path, exif=exif)
    photo = read_photo(path)
    assert photo.size_px == (30, 40)
    assert np.array_equal(photo.pixels, np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")))
    assert photo.name == "camera.jpg"


def test_broken_exif_leaves_the_picture_as_it_is():
    data = encoded(Image.fromarray(scene()), "PNG", exif=b"Exif\x00\x00garbage that is no TIFF header")
    assert np.array_equal(read_photo(data).pixels, scene())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "RGBa", "RGBX"])
def test_every_eight_bit_mode_equals_pillows_conversion(mode):
    source = Image.fromarray(scene())
    image = (source.convert("RGBA") if mode == "RGBa" else source).convert(mode)
    assert image.mode == mode
    assert np.array_equal(read_photo(image).pixels, np.asarray(image.convert("RGB")))


def test_premultiplied_gray_reads_by_way_of_its_plain_form():
    gray = Image.fromarray(scene()).convert("LA")
    assert np.array_equal(read_photo(gray.convert("La")).pixels, np.asarray(gray.convert("RGB")))


def test_transparency_is_dropped_as_timm_drops_it():
    rgba = np.dstack([scene(), np.zeros((30, 40), np.uint8)])
    assert np.array_equal(read_photo(encoded(Image.fromarray(rgba), "PNG")).pixels, scene())
    assert np.array_equal(read_photo(rgba).pixels, scene())


def test_palette_with_transparency_reads_without_a_warning(recwarn):
    image = Image.fromarray(scene()).quantize(16)
    data = encoded(image, "PNG", transparency=bytes(range(16)))
    assert np.array_equal(read_photo(data).pixels, np.asarray(image.convert("RGB")))
    assert not recwarn.list


def test_sixteen_bit_gray_is_scaled_not_clipped():
    deep = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    expected = np.round(deep / 257).astype(np.uint8)
    for photo in (
        read_photo(encoded(Image.fromarray(deep), "PNG")),
        read_photo(encoded(Image.fromarray(deep), "TIFF")),
        read_photo(deep),
        read_photo(Image.fromarray(deep.astype(np.int32))),
    ):
        assert np.array_equal(photo.pixels, np.repeat(expected[:, :, None], 3, axis=2))


def test_thirty_two_bit_values_beyond_sixteen_bits_are_refused():
    with pytest.raises(InputError, match="from 0 to 70000"):
        read_photo(Image.fromarray(np.array([[0, 70_000]], np.int32)))


def test_float_image_takes_zero_to_one():
    values = np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)
    assert np.array_equal(read_photo(Image.fromarray(values)).pixels[:, :, 0], np.round(values * 255).astype(np.uint8))
    with pytest.raises(InputError, match=r"from 0 to 255.*Divide by 255"):
        read_photo(Image.fromarray(values * 255))


def test_animation_gives_its_first_frame_and_says_so():
    frames = [Image.fromarray(np.full((9, 7, 3), shade, np.uint8)) for shade in (10, 120, 240)]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        photo = read_photo(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options), name="cat")
        assert photo.name == "cat, first of 3 frames"
        assert int(np.abs(photo.pixels.astype(int) - 10).max()) <= 1


def test_second_picture_in_a_phones_file_makes_no_animation():
    first = Image.fromarray(scene())
    data = encoded(first, "MPO", save_all=True, append_images=[first])
    photo = read_photo(data, name="phone.jpg")
    assert (photo.name, photo.size_px) == ("phone.jpg", (40, 30))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_array_of_floats_is_rounded_to_bytes(dtype):
    assert np.array_equal(read_photo((scene() / 255).astype(dtype)).pixels, scene())


def test_array_of_bools_and_gray_arrays():
    mask = scene()[:, :, 0] > 100
    assert np.array_equal(read_photo(mask).pixels[:, :, 2], mask * np.uint8(255))
    assert np.array_equal(read_photo(scene()[:, :, :1]).pixels[:, :, 1], scene()[:, :, 0])


def test_tensor_is_channels_first():
    tensor = torch.from_numpy(scene()).permute(2, 0, 1)
    assert np.array_equal(read_photo(tensor).pixels, scene())
    assert np.array_equal(read_photo(tensor / 255.0).pixels, scene())
    assert np.array_equal(read_photo((tensor / 255.0).requires_grad_()).pixels, scene())
    assert read_photo((tensor / 255.0).bfloat16()).size_px == (40, 30)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(30, 40, 3), r"\[30, 40, 3\] is no picture.*permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 30, 40), "is a batch"),
        (np.zeros((3, 30, 40), np.uint8), r"np.moveaxis"),
        (np.zeros((30, 40, 2), np.uint8), r"1, 3 or 4 channels"),
        (np.zeros(7, np.uint8), "no picture"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (np.full((4, 4, 3), -0.5), "normalized for the model"),
        (np.zeros((0, 4, 3), np.uint8), "is empty"),
        (42, "cannot be read from a int"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        read_photo(source)


def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path):
    whole = encoded(Image.fromarray(scene(200, 100)), "PNG")
    files = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"To whom it may concern\n" * 50, "no picture that can be read"),
        "cut.png": (whole[: len(whole) // 2], "damaged or truncated.*200 x 100"),
        "header.png": (whole[:20], "no picture|damaged"),
        "cut.jpg": (encoded(Image.fromarray(scene(200, 100)), "JPEG")[:900], "damaged or truncated"),
        "noise.webp": (b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(range(256)), "no picture|damaged"),
        "drawing.eps": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
            "no picture that can be read",
        ),
    }
    for name, (data, message) in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError, match=message) as caught:
            read_photo(path)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_paths_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        read_photo(tmp_path / "missing.png")
    with pytest.raises(InputError, match="is a folder"):
        read_photo(tmp_path)
    with pytest.raises(InputError, match="web address"):
        read_photo("https://example.org/cat.jpg")
    with pytest.raises(InputError, match="cannot be read"):
        read_photo("a\0b.png")


def test_decompression_bomb_is_refused_before_it_is_decoded():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(InputError, match="decompression bomb"):
        read_photo(bomb)


def test_the_limit_holds_where_pillows_own_is_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    side = int(MAX_PIXELS**0.5) + 10
    with pytest.raises(InputError, match="decompression bomb"):
        read_photo(encoded(Image.new("1", (side, side)), "PNG"))


def test_thin_and_huge_pictures_read():
    assert read_photo(encoded(Image.new("RGB", (5000, 1), (1, 2, 3)), "PNG")).size_px == (5000, 1)
    assert read_photo(encoded(Image.new("L", (10_000, 5000), 7), "PNG")).size_px == (10_000, 5000)
    assert read_photo(encoded(Image.new("RGB", (1, 1)), "PNG")).size_px == (1, 1)


def test_the_users_image_is_left_as_it_was():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(scene()), "PNG", exif=exif)))
    read_photo(image)
    assert (image.size, image.mode, image.getexif()[0x0112]) == ((40, 30), "RGB", 6)
    assert np.array_equal(np.asarray(image), scene())
