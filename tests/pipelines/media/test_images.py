"""Images are loaded as transformers loads them, and what can't be is refused in one line before it costs anything."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image as reference_load_image

from pipelines.errors import InputError
from pipelines.media.images import MAX_BYTES, load_image

FORMATS = ["png", "jpeg", "gif", "bmp", "webp"]
ORIENTATION = 0x0112  # EXIF tag


def picture(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    image = Image.fromarray(values, "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def encoded(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, format, **options)
    return buffer.getvalue()


def upright(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says how large it is and has no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def refusal(reference: str) -> str:
    with pytest.raises(InputError) as caught:
        load_image(reference)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("png", encoded("png", picture("RGBA"))),
        ("png", encoded("png", picture("P"), transparency=bytes(range(256)))),
        ("png", encoded("png", picture("1"))),
        ("png", encoded("png", Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100))),
        ("gif", encoded("gif", picture("P"), transparency=3)),
        ("gif", encoded("gif", picture("P"), save_all=True, append_images=[picture("L").convert("P")])),
        ("jpeg", encoded("jpeg", picture("L"))),
        ("jpeg", encoded("jpeg", picture("CMYK"))),
        *(("jpeg", encoded("jpeg", exif=upright(orientation))) for orientation in range(1, 9)),
        ("png", encoded("png", exif=upright(6))),
        ("bmp", encoded("bmp")),
        ("webp", encoded("webp", picture("RGBA"), lossless=True)),
    ],
)
def test_pixels_are_those_of_transformers(tmp_path: Path, format: str, content: bytes) -> None:
    path = tmp_path / f"image.{format}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of transparency that is lost; load_image must not
        expected = reference_load_image(str(path))
    for reference in (str(path), data_uri(content, f"image/{format}")):
        image = load_image(reference)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.png").write_bytes(encoded("png"))
    assert load_image("~/x.png").size == (48, 32)


def test_a_data_uri_may_have_line_ends_and_escapes() -> None:
    payload = base64.encodebytes(encoded("png")).decode()
    escaped = payload.replace("+", "%2B").replace("=", "%3d")
    assert payload.count("\n") > 1
    assert escaped != payload
    assert load_image("DATA:Image/PNG;Base64," + escaped).size == (48, 32)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("nowhere.png", "there is no file 'nowhere.png'"),
        ("nowhere.png/x", "there is no file 'nowhere.png/x'"),
        ("a\0b", "there is no file 'a\\x00b'"),
        ("\x1b[31m\n", "there is no file '\\x1b[31m\\n'"),
        ("~nobody-at-all/x.png", "can't read '~nobody-at-all/x.png' (Could not determine home directory.)"),
        ("x" * 5000, "'" + "x" * 200 + "...'"),
        ("/", "'/' is a folder"),
        ("/dev/zero", "'/dev/zero' is a pipe or a device"),
        ("file:///x.png", "'file:///x.png' has a scheme that can't be used"),
        ("FILE:x.png", "'FILE:x.png' has a scheme that can't be used"),
        ("ftp://example.com/x.png", "'ftp://example.com/x.png' has a scheme that can't be used"),
        ("data:text/plain;base64,aGVsbG8=", "is not an image: its data URI should begin with data:image/"),
        ("data:image/png,abc", "is not base64 or is cut short"),
        ("data:image/png;base64", "is not base64 or is cut short"),
        ("data:image/png;base64,iVBOR", "is cut short or is not base64"),
        ("data:image/png;base64,iVB\u00e9", "is cut short or is not base64"),
        ("data:image/png;base64,", "is not an image, or a damaged one"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "is not an image, or a damaged one"),
        ("data:image/png;base64," + "A" * 28 * 2**20, "AAAAAAAAAAAAAAAAAA...' is larger than 20 MiB"),
        ("data:image/png;base64," + "A" * 41 * 2**20, "AAAAAAAAAAAAAAAAAA...' is larger than 20 MiB"),
        ("http://127.0.0.1/x.png", "can't fetch 'http://127.0.0.1/x.png': its host is not a public one"),
    ],
    ids=lambda value: value[:30],
)
def test_references_that_give_no_image(reference: str, expected: str) -> None:
    assert expected in refusal(reference)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.touch()

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    assert refusal(str(path)) == f"can't read '{path}' (Permission denied): check the path"


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.bmp"
    path.write_bytes(encoded("bmp") + bytes(MAX_BYTES))
    assert "is larger than 20 MiB" in refusal(str(path))


@pytest.mark.parametrize("format", ["tiff", "ppm", "ico", "tga", "pdf"])
def test_other_formats(format: str) -> None:
    assert "give one of PNG, JPEG, GIF, BMP, WEBP" in refusal(data_uri(encoded(format)))


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_that_is_cut_short(format: str) -> None:
    content = encoded(format)
    message = refusal(data_uri(content[: len(content) // 2]))
    assert "is damaged or cut short (" in message
    assert message.startswith("'data:image/png;base64,")


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_refused_or_decoded(format: str) -> None:
    chance = random.Random(0)
    content = encoded(format, exif=upright(3)) if format in ("png", "jpeg", "webp") else encoded(format)
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[chance.randrange(min(len(damaged), 300))] = chance.randrange(256)
        with contextlib.suppress(InputError):
            load_image(data_uri(bytes(damaged)))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (9_000, 9_000), (10_000, 10_000), (2**30, 2**30)])
def test_too_many_pixels_are_refused_by_the_header(size: tuple[int, int]) -> None:
    """Below and above the limits where Pillow warns and raises."""
    assert "has too many pixels" in refusal(data_uri(png_of_size(*size)))


def test_a_long_narrow_image() -> None:
    assert "has too many pixels (20000 x 1)" in refusal(data_uri(encoded("bmp", Image.new("L", (20_000, 1)))))
    assert load_image(data_uri(encoded("png", Image.new("L", (16_384, 1))))).size == (16_384, 1)


def test_an_image_without_pixels() -> None:
    assert "'data:image/png;base64," in refusal(data_uri(png_of_size(0, 3)))


def test_importing_is_cheap() -> None:
    program = "import sys, pipelines.media.images; print(sorted({'PIL', 'httpx', 'httpcore'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
