"""Image files to test on."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image


def random_pixels(seed, *shape, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def smooth(seed, height, width):
    """A picture that JPEG keeps well, ``(height, width, 3)``."""
    small = Image.fromarray(random_pixels(seed, 4, 5, 3))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, form, **options):
    """An array or picture as the content of a file."""
    content = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(content, form, **options)
    return content.getvalue()


def tiff(array, **options):
    content = io.BytesIO()
    tifffile.imwrite(content, array, **options)
    return content.getvalue()


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def deep_png(array, filtering):
    """A PNG of ``(H, W, C)``, uint16, C = 2, 3 or 4, whose rows are filtered as 0 to 4 of its specification say."""
    height, width, channels = array.shape
    rows = np.frombuffer(array.astype(">u2").tobytes(), np.uint8).reshape(height, -1).astype(int)
    bpp = 2 * channels
    padded = np.pad(rows, ((1, 0), (bpp, 0)))
    left, above, corner = padded[1:, :-bpp], padded[:-1, bpp:], padded[:-1, :-bpp]
    estimate = left + above - corner
    near = np.stack([left, above, corner])
    paeth = np.take_along_axis(near, np.abs(estimate - near).argmin(axis=0)[None], axis=0)[0]
    expected = [np.zeros_like(rows), left, above, (left + above) // 2, paeth][filtering]
    filtered = np.pad((rows - expected) % 256, ((0, 0), (1, 0)), constant_values=filtering).astype(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    content = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(content)


def deep_jpeg_2000():
    """A JPEG 2000 that says to have 12 bits a channel."""
    content = bytearray(encoded(smooth(0, 40, 50), "JPEG2000"))
    depths = content.index(b"\xff\x4f\xff\x51") + 42
    assert content[depths : depths + 9 : 3] == b"\x07\x07\x07"
    content[depths : depths + 9 : 3] = b"\x0b\x0b\x0b"
    return bytes(content)


def bits_12(array):
    """A TIFF of ``(H, W)``, W even, two pixels in three bytes."""
    height, width = array.shape
    even, odd = array[:, ::2].astype(int), array[:, 1::2].astype(int)
    data = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1).astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + directory + bytes(4)


def animation(form, seed=0, **options):
    frames = [Image.fromarray(smooth(seed + i, 30, 40)) for i in range(3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)


BROKEN = ("zero.jpg", "torn.jpg", "torn.png", "noise.png", "text.jpg", "torn.tif", "torn.npy", "five.tif", "nan.npy")


def messy_folder(folder, images=60):
    """A folder as they come: ``images`` JPEGs, odd but readable files, and the files of ``BROKEN``."""
    jpeg = encoded(smooth(0, 48, 64), "JPEG")
    png = encoded(smooth(1, 48, 64), "PNG")
    odd = {
        "cmyk.jpg": encoded(Image.fromarray(smooth(2, 48, 64)).convert("CMYK"), "JPEG"),
        "palette.png": encoded(Image.fromarray(smooth(3, 48, 64)).quantize(16), "PNG", transparency=b"\0\x80\xff"),
        "animated.gif": animation("GIF"),
        "animated.webp": animation("WEBP"),
        "animated.png": animation("PNG"),
        "wide.jpg": encoded(Image.new("L", (20_000, 300), 90), "JPEG"),
        "wide.png": encoded(Image.new("1", (20_000, 5_000)), "PNG"),
        "deep.png": encoded(random_pixels(4, 48, 64, dtype=np.uint16), "PNG"),
        "deep.tif": tiff(random_pixels(5, 48, 64, 3, dtype=np.uint16), photometric="rgb"),
        "array.npy": npy(random_pixels(6, 3, 48, 64)),
        "grey.bmp": encoded(random_pixels(7, 48, 64), "BMP"),
        "dot.gif": encoded(Image.new("RGB", (1, 1)), "GIF"),
        "strip.png": encoded(random_pixels(8, 1, 500, 3), "PNG"),
    }
    broken = {
        "zero.jpg": b"",
        "torn.jpg": jpeg[:200],
        "torn.png": png[:300],
        "noise.png": random_pixels(9, 500).tobytes(),
        "text.jpg": b"<html>404 not found</html>",
        "torn.tif": tiff(smooth(0, 48, 64))[:150],
        "torn.npy": npy(smooth(0, 48, 64))[:300],
        "five.tif": tiff(random_pixels(0, 5, 48, 64), photometric="minisblack", planarconfig="separate"),
        "nan.npy": npy(np.full((48, 64), np.nan, np.float32)),
    }
    assert tuple(broken) == BROKEN
    (folder / "deep" / "deeper").mkdir(parents=True)
    for number in range(images):
        place = (folder, folder / "deep", folder / "deep" / "deeper")[number % 3]
        (place / f"{number:03}.jpg").write_bytes(encoded(smooth(number, 60 + number, 80), "JPEG"))
    for name, content in (odd | broken).items():
        (folder / name).write_bytes(content)
    for name in ("README.txt", ".hidden.jpg", "Thumbs.db"):
        (folder / name).write_bytes(b"no image")
    return folder
