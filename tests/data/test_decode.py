"""Decoding: right pixels from good files, and nothing but DecodeError from bad ones."""

import io
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from remembrandt.configuration import parse_config
from remembrandt.data.decode import DecodeConfig, DecodeError, decode_image, image_size
from remembrandt.errors import ConfigError, RemembrandtError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # the silence itself is tested below
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def gradient(width=60, height=40, mode="RGB"):
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    return Image.fromarray(pixels).convert(mode)


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height, depth=8, colour=2):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header


def reason(data, config=None):
    with pytest.raises(DecodeError) as caught:
        decode_image(data, config or DecodeConfig())
    message = str(caught.value)
    assert "\n" not in message and len(message) < 200
    return message


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_plain_rgb(format):
    image = decode_image(encode(gradient(), format))
    assert type(image) is Image.Image and image.mode == "RGB" and image.size == (60, 40) and image.info == {}
    difference = np.abs(np.asarray(image, int) - np.asarray(gradient(), int))
    assert difference.mean() < (0.5 if format in ("PNG", "BMP", "TIFF") else 12)


def test_lossless_files_decode_exactly():
    for data in (encode(gradient(), "PNG"), encode(gradient(), "BMP"), encode(gradient(), "WEBP", lossless=True)):
        assert np.array_equal(np.asarray(decode_image(data)), np.asarray(gradient()))


def test_jpeg_pixels_are_those_of_a_full_decode():
    data = encode(gradient(640, 480), "JPEG", quality=85)
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone(orientation, format):
    undone = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    upright = gradient()
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undone[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    data = encode(stored, format, exif=exif, **options)
    image = decode_image(data)
    assert image.size == upright.size == image_size(data)
    assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean() < 4


def test_broken_exif_does_not_cost_the_image(capfd):
    data = encode(gradient(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert decode_image(data).size == (60, 40)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_over_white(format):
    image = Image.new("RGBA", (4, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 255, 128))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    pixels = np.asarray(decode_image(encode(image, format, **options)), int)[0]
    assert pixels[0].tolist() == [255, 0, 0] and pixels[1].tolist() == [255, 255, 255]
    assert np.abs(pixels[2] - [127, 127, 255]).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_colour_becomes_white(format):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(decode_image(encode(image, format, transparency=0)))[0]
    assert pixels.tolist() == [[255, 255, 255], [200, 100, 50]]


def test_grey_with_alpha_and_bilevel_are_understood():
    faint = Image.merge("LA", (Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 0)))
    assert np.asarray(decode_image(encode(faint, "PNG"))).min() == 255
    assert np.asarray(decode_image(encode(Image.new("1", (9, 9), 1), "PNG"))).min() == 255


def test_sixteen_bit_grey_keeps_its_shades():
    shades = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    for format in ("PNG", "TIFF"):
        pixels = np.asarray(decode_image(encode(Image.fromarray(shades), format)))
        assert np.array_equal(pixels[0, :, 0], shades[0] >> 8)


@pytest.mark.parametrize("top", [1.0, 255.0, 4000.0])
def test_float_images_span_black_to_white(top):
    values = np.linspace(0, top, 50, dtype=np.float32)[None].repeat(3, 0)
    values[2, 2] = np.nan
    pixels = np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")))
    assert pixels[0, 0, 0] == 0 and pixels[0, -1, 0] >= 254 and (np.diff(pixels[0, :, 0].astype(int)) >= 0).all()


def test_cmyk_is_converted():
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(np.asarray(decode_image(data), int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(decode_image(data), int) - [255, 0, 0]).max() < 5


def test_content_decides_and_not_the_name():
    assert reason(b"<!DOCTYPE html><html><body>404</body></html>") == "not an image: looks like HTML"
    assert reason(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>') == "not an image: looks like SVG"
    assert reason(b"\n\n<svg/>") == "not an image: looks like SVG"
    assert reason(b'{"error": 403}') == "not an image: looks like JSON"
    assert reason(b"Access denied") == "not an image: looks like text"
    assert reason(b"%PDF-1.7 ...") == "not an image: looks like PDF"
    assert reason(b"") == "the file is empty"
    assert reason(b"\0" * 4096) == "not an image: it holds zero bytes only"
    assert reason(bytes(range(256))) == "not an image: unknown or unaccepted format"


def test_formats_outside_the_list_are_refused_though_pillow_reads_them():
    assert "AVIF" in reason(encode(gradient(), "AVIF"))
    assert "an icon file" in reason(encode(gradient(), "ICO"))
    assert "unaccepted format" in reason(encode(gradient(), "PPM")) or "text" in reason(encode(gradient(), "PPM"))
    assert "unaccepted" in reason(encode(gradient(), "GIF"), DecodeConfig(formats=("jpeg", "PNG")))


def test_an_unknown_format_name_is_a_configuration_error():
    with pytest.raises(ConfigError, match=r"formats.*choose from JPEG, PNG"):
        parse_config(DecodeConfig, {"formats": ["JPEG", "PSD"]}, "here")


def test_two_hundred_megapixels_are_refused_fast_and_without_memory():
    rows = zlib.compress(b"\0" * (1 + 20_000 * 3)) * 10
    data = png_header(20_000, 10_000) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    tracemalloc.start()
    start = time.perf_counter()
    message = reason(data)
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message == "too large: 20000×10000 pixels, max_pixels is 100000000"
    assert seconds < 0.5 and peak < 5_000_000


def test_the_pixel_limit_is_the_configured_one_and_not_pillows(monkeypatch):
    data = encode(gradient(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(data, DecodeConfig(max_pixels=2400)).size == (60, 40)
    assert "too large" in reason(data, DecodeConfig(max_pixels=2399))


def test_a_compressed_text_bomb_is_refused():
    bomb = chunk(b"zTXt", b"c\0\0" + zlib.compress(b"x" * 80_000_000))
    data = png_header(1, 1) + bomb + chunk(b"IDAT", zlib.compress(b"\0\0\0\0")) + chunk(b"IEND", b"")
    start = time.perf_counter()
    assert "too large" in reason(data)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_files_are_refused(format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8))
    data = encode(noise, format)
    for keep in (0.02, 0.3, 0.6, 0.9):
        assert reason(data[: int(len(data) * keep)])


def test_errors_can_be_acted_on():
    assert issubclass(DecodeError, RemembrandtError)


def samples():
    """Real files of every format and kind."""
    picture = gradient(90, 70)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [gradient(30, 20).rotate(90 * turn) for turn in range(3)]
    yield from (encode(picture, format) for format in FORMATS)
    yield encode(picture, "JPEG", progressive=True, exif=exif)
    yield encode(picture.convert("CMYK"), "JPEG")
    yield encode(picture.convert("RGBA"), "PNG")
    yield encode(picture.convert("P"), "PNG", transparency=3)
    yield encode(Image.fromarray(np.arange(6300, dtype=np.uint16).reshape(70, 90)), "PNG")
    yield encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    yield encode(picture.convert("RGBA"), "WEBP", lossless=True)
    yield encode(picture.convert("P"), "BMP")
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield encode(picture, "TIFF", compression=compression, exif=exif)
    yield encode(picture.convert("1"), "TIFF", compression="group4")


def damaged(data, draw):
    """One of: bit flips (half of them in the header), bytes overwritten, a stretch removed, repeated or cut off."""
    data = bytearray(data)
    position = draw.randrange(min(len(data), 200) if draw.random() < 0.5 else len(data))
    match draw.randrange(5):
        case 0:
            for _ in range(draw.randint(1, 6)):
                data[min(position + draw.randrange(40), len(data) - 1)] ^= 1 << draw.randrange(8)
        case 1:
            data[position : position + 4] = draw.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
        case 2:
            del data[position : position + draw.randint(1, 50)]
        case 3:
            data[position:position] = data[position : position + draw.randint(1, 50)]
        case 4:
            del data[position:]
    return bytes(data)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("sample", range(len(list(samples()))))
def test_damage_gives_an_image_or_a_decode_error_quickly(sample):
    good = list(samples())[sample]
    assert decode_image(good).mode == "RGB"
    draw = random.Random(sample)
    outcomes = []
    for _ in range(1500):
        data = damaged(good, draw)
        start = time.perf_counter()
        try:
            outcomes.append(decode_image(data, DecodeConfig(max_pixels=2_000_000)).mode)
        except DecodeError as error:
            outcomes.append(str(error))
        assert time.perf_counter() - start < 5
    assert all(outcomes) and not any("\n" in outcome for outcome in outcomes)
    assert len(outcomes) - outcomes.count("RGB") > 100


def test_damage_is_silent(tmp_path):
    """In a process of its own: libraries write to the file descriptor, and pytest changes Python's warning filters."""
    draw = random.Random(99)
    corpus = [damaged(data, draw) for data in samples() for _ in range(150)]
    (tmp_path / "corpus").write_bytes(pickle.dumps(corpus))
    program = """
import pickle, sys
from remembrandt.data.decode import DecodeConfig, DecodeError, decode_image
refused = 0
for data in pickle.load(open(sys.argv[1], "rb")):
    try:
        decode_image(data, DecodeConfig(max_pixels=2_000_000))
    except DecodeError:
        refused += 1
print(refused)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "corpus")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) > len(corpus) / 4


def test_random_bytes_behind_real_signatures_give_a_decode_error():
    draw = random.Random(1)
    signatures = [
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"RIFF\0\0\1\0WEBPVP8 ",
    ]
    for case in range(700):
        reason(signatures[case % len(signatures)] + draw.randbytes(draw.randint(0, 300)))


def test_threads_decode_the_same_pixels():
    files = list(samples()) * 6
    expected = [np.asarray(decode_image(data)) for data in files]
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(decode_image, files))
    assert all(np.array_equal(np.asarray(image), pixels) for image, pixels in zip(images, expected, strict=True))
