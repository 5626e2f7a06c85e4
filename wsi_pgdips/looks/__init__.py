"""The looks of slides, and how a slide is given the look of another.

* ``reference``, ``files``: a look as numbers and as a file; ``slide_look`` measures a slide's.
* ``transfer``, with ``frame``, ``kernel``, ``weight`` and ``pixels``: from one look to another.
* ``recompose``: RGB from concentrations, of all stains or of one.
* ``reader``, ``normalized_slide``: a slide in another look, with OpenSlide's interface.
* ``distance``: colour distances between slides.
"""
