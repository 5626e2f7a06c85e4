"""The looks of slides, and how a slide is given the look of another.

* ``reference``, ``files``, ``hashed``: a look as numbers and as a file; ``slide_look`` measures a
  slide's, and ``groups`` pools those of several.
* ``match``: the map of colours between two looks. ``register``, ``pairs``, ``map_fit`` and
  ``colour_map``: the map between two scanners, measured on scans of the same glass.
* ``transfer``, with ``kernel``, ``foreign_pixels`` and ``pixels``: from one look to another.
  ``account`` says what it changes.
* ``recompose``: RGB from concentrations, of all stains or of one.
* ``reader``, ``normalized_slide``: a slide in another look, with OpenSlide's interface.
* ``distance``: colour distances between slides.
"""
