"""Images that have been through the vision encoder, kept for further questions about them."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable

from PIL import Image

from llava.model.prompt_encoder import EncodedImage

CACHE_MIB = 256  # of a ViT-L/14-336 in float32 some 70 images


def content_key(image: Image.Image) -> Hashable:
    """Return what two images in RGB have in common if, and only if, all their pixels are equal."""
    return image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest()


class FeatureCache:
    """The encoded images that were used last, up to a bound; several threads may use it at once.

    Args:
        mebibytes: The most that features and pixels of all images take, on the device where they were made;
            0 keeps none.
    """

    def __init__(self, mebibytes: float = CACHE_MIB) -> None:
        self.limit = int(mebibytes * 2**20)
        self.nbytes = 0
        self._images: OrderedDict[Hashable, EncodedImage] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, key: Hashable) -> EncodedImage | None:
        """Return an image, if it is still there."""
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._images.get(key)

    def add(self, key: Hashable, image: EncodedImage) -> None:
        """Keep an image, and let go of those that were not used for longest."""
        with self._lock:
            known = self._images.get(key)
            if image.nbytes > self.limit or (known and known.signals.keys() >= image.signals.keys()):
                return
            self.nbytes -= 0 if known is None else known.nbytes
            self._images[key] = image
            self.nbytes += image.nbytes
            while self.nbytes > self.limit:
                _, oldest = self._images.popitem(last=False)
                self.nbytes -= oldest.nbytes

    def clear(self) -> None:
        """Forget all images, because the weights that made them have changed."""
        with self._lock:
            self._images.clear()
            self.nbytes = 0
