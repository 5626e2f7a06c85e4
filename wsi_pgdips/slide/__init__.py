"""Slides in: pixels of whole-slide images and plain images on one output grid.

``reader`` opens files (``open_source``, ``read_meta``), ``source`` puts a pyramid or an array on
the output grid (``PyramidSource``, ``ArraySource``) that ``scale`` chooses, ``image`` holds the
pyramids that OpenSlide does not read, ``resample`` and ``colour`` the numerics. ``phantom`` and its
modules make synthetic slides. Import from the modules: this file stays empty so that OpenSlide and
tifffile are loaded only where they are used.
"""
