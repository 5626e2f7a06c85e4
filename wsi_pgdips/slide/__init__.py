"""Reading of whole-slide images and plain images, as pixels on one output grid.

* ``reader``: opens files of all kinds (``open_source``, ``open_slide``, ``read_meta``).
* ``source``: chooses the output grid, and reads a pyramid or an array on it.
* ``pyramid``: what every kind of file offers: its levels and the facts beside the pixels.
* ``image``: the pyramids that OpenSlide does not read: OME-TIFF, plain TIFF, PNG, JPEG.
* ``native``: a slide's own levels, with OpenSlide's interface.
* ``resample``: the numerics between a level and the output grid.
* ``colour``: transparency and ICC profiles.
* ``staging``: a temporary copy of the slide on a local disk.

Import from the modules: this file stays empty, so that OpenSlide and tifffile are loaded only where
they are used.
"""
