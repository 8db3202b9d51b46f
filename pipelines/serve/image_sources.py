"""Images that requests refer to: data URIs, and addresses of the hosts that the operator allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx

from pipelines.media.images import MAX_PIXELS, load_image
from pipelines.serve.errors import bad_request

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGES = 16
"""The most images of one request; together they have at most MAX_PIXELS."""
_PARAM = "messages"


class ImageSources:
    """Reads the images of requests, in a few threads of its own: a slow host keeps no other request waiting.

    allowed_hosts: of http(s) addresses; "*": all public ones.
    """

    def __init__(self, allowed_hosts: Collection[str], num_threads: int = 4) -> None:
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._threads = ThreadPoolExecutor(num_threads, "images")
        self._slots = asyncio.Semaphore(num_threads)

    async def load(self, references: Sequence[str]) -> list[Image]:
        """Reads images, in their order.

        Raises:
            ApiError: Too many, too large together, or at addresses that are not allowed.
            InputError: One can't be read.
        """
        if not references:
            return []
        if len(references) > MAX_IMAGES:
            raise bad_request(f"A request may have {MAX_IMAGES} images, and this one has {len(references)}.", _PARAM)
        for reference in references:
            self._check(reference)
        async with self._slots:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, _load_all, references)

    def close(self) -> None:
        """Ends the threads once they are idle."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check(self, reference: str) -> None:
        scheme = reference[:8].lower()
        if scheme.startswith("data:"):
            return
        if not scheme.startswith(("http://", "https://")):
            raise bad_request("An image must be a data: URI or an http(s):// address.", _PARAM)
        try:
            host = httpx.URL(reference).host.lower()  # the parser of the client that fetches it
        except httpx.InvalidURL:
            raise bad_request("An image has an address that is not valid.", _PARAM) from None
        if not self._allowed_hosts & {"*", host}:
            message = "Images from this host are not allowed (--allowed-image-hosts): send the image as a data: URI."
            raise bad_request(message, _PARAM)


def _load_all(references: Sequence[str]) -> list[Image]:
    images: list[Image] = []
    num_pixels = 0
    for reference in references:
        images.append(load_image(reference))
        num_pixels += images[-1].width * images[-1].height
        if num_pixels > MAX_PIXELS:
            raise bad_request(f"The images of a request may have {MAX_PIXELS:,} pixels together.", _PARAM)
    return images
