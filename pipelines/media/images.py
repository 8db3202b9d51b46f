"""Images from files, web addresses and data URIs, loaded as transformers would load them, within limits."""

from __future__ import annotations

import base64
import io
import re
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from pipelines.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 20 * 2**20  # of the encoded image
MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 64_000_000  # 192 MB once decoded
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")  # WEBP last: Pillow imports all its plugins to find it

SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|(https?|data|file|ftp):", re.IGNORECASE)
# One image at a time: the filters of warnings belong to the whole process, and decoding may take some 500 MB.
DECODING = threading.Lock()


def load_image(reference: str, *, allow_private: bool = False) -> Image:
    """Loads an image in RGB, rotated as its EXIF data says; the first frame of an animated one.

    Args:
        reference: A path, an http(s):// address or a data:image/...;base64, URI. A path is read without checks: a
            server must not pass on those of its clients.
        allow_private: Whether the address may be of a host that is not public. Redirects may never lead to one.

    Raises:
        InputError: The image can't be read, is in none of FORMATS, is damaged, or is too large.
    """
    name = _shown(reference)
    data = _read(reference, name, allow_private)
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(name)
    return _decode(data, name)


def _shown(reference: str) -> str:
    """Formats a reference for an error line."""
    length = 40 if reference[:5].lower() == "data:" else 200
    return repr(reference if len(reference) <= length else reference[:length] + "...")


def _read(reference: str, name: str, allow_private: bool) -> bytes:
    match = SCHEME.match(reference)
    if not match:
        return _read_file(reference, name)
    scheme = (match[1] or match[2]).lower()
    if scheme in ("http", "https"):
        from pipelines.media.fetch import fetch  # imported here: its HTTP client takes a tenth of a second

        return fetch(reference, max_bytes=MAX_BYTES, allow_private=allow_private)
    if scheme == "data":
        return _read_data_uri(reference, name)
    raise InputError(f"{name} has a scheme that can't be used: give a path, an http(s):// address or a data: URI")


def _read_file(reference: str, name: str) -> bytes:
    """Reads the bytes of a file, at most MAX_BYTES + 1."""
    try:
        path = Path(reference).expanduser()
        if path.is_file():  # a pipe could block, a device might never end
            with path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: no such home folder
        raise InputError(f"can't read {name} ({getattr(error, 'strerror', error)}): check the path") from None
    if is_folder:
        raise InputError(f"{name} is a folder: give one image file")
    if exists:
        raise InputError(f"{name} is a pipe or a device: give an image file")
    raise InputError(f"there is no file {name}: check the path")


def _read_data_uri(uri: str, name: str) -> bytes:
    header, comma, payload = uri.partition(",")
    media_type = header.lower()
    if not media_type.startswith("data:image/"):
        raise InputError(f"{name} is not an image: its data URI should begin with data:image/")
    if not comma or not media_type.endswith(";base64"):
        raise InputError(f"{name} is not base64 or is cut short: a data URI should read data:image/...;base64,...")
    if len(payload) > 2 * MAX_BYTES:  # base64 is 4/3 of its content; the rest is room for line ends
        raise _too_many_bytes(name)
    try:
        return base64.b64decode(b"".join(unquote_to_bytes(payload).split()), validate=True)
    except ValueError:
        raise InputError(f"{name} is cut short or is not base64: encode the whole image again") from None


def _decode(data: bytes, name: str) -> Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    with DECODING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, damaged EXIF data, transparency that RGB loses
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
                _check_size(*image.size, name)
                return ImageOps.exif_transpose(image).convert("RGB")
        except InputError:
            raise
        except Image.DecompressionBombError:
            raise _too_many_pixels(name) from None
        except UnidentifiedImageError:
            raise InputError(f"{name} is not an image, or a damaged one: give one of {', '.join(FORMATS)}") from None
        except Exception as error:  # Pillow's plugins raise errors of many types for damaged data
            reason = str(error) or type(error).__name__
            raise InputError(f"{name} is damaged or cut short ({reason}): save or download it again") from None


def _check_size(width: int, height: int, name: str) -> None:
    """Checks that an image has pixels, and not too many.

    Raises:
        InputError: It has none, or too many.
    """
    if min(width, height) < 1:
        raise InputError(f"{name} has no pixels: give another image")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _too_many_pixels(name, f" ({width} x {height})")


def _too_many_pixels(name: str, size: str = "") -> InputError:
    return InputError(
        f"{name} has too many pixels{size}: at most {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all; scale it down"
    )


def _too_many_bytes(name: str) -> InputError:
    return InputError(f"{name} is larger than {MAX_BYTES / 2**20:g} MiB: scale it down or save it with less quality")
