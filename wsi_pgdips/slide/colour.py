"""The colour of pixels in a file: transparency and the embedded ICC profile."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

from wsi_pgdips.errors import SlideError
from wsi_pgdips.records import ByteArray


def on_white(rgba: ByteArray) -> ByteArray:
    """Composite (h, w, 4) pixels with straight alpha on white: (h, w, 3), rounded to nearest."""
    alpha = rgba[..., 3:]
    if alpha.size == 0 or int(alpha.min()) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    a = alpha.astype(np.uint32)
    mixed = (rgba[..., :3] * a + 255 * (255 - a) + 127) // 255
    return mixed.astype(np.uint8)


class ToSrgb:
    """The conversion from an embedded ICC profile to sRGB, by the profile's own rendering intent.

    It can be pickled.

    Raises:
        SlideError: the profile cannot be parsed or does not describe RGB.
    """

    def __init__(self, profile: bytes) -> None:
        self._profile = profile
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            self._transform = ImageCms.buildTransform(
                source,
                ImageCms.createProfile("sRGB"),
                "RGB",
                "RGB",
                ImageCms.Intent(ImageCms.getDefaultIntent(source)),
            )
        except (OSError, ValueError, ImageCms.PyCMSError) as error:
            raise SlideError(
                "the slide's ICC profile cannot be used", found=error, hint="run without --icc"
            ) from None

    def __call__(self, rgb: ByteArray) -> ByteArray:
        """Convert (h, w, 3) from the profile's space to sRGB."""
        if rgb.size == 0:
            return rgb
        return np.asarray(ImageCms.applyTransform(Image.fromarray(rgb), self._transform))

    def __reduce__(self) -> tuple[type[ToSrgb], tuple[bytes]]:
        return ToSrgb, (self._profile,)
