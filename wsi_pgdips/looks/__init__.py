"""What slides look like, and how one is given the look of another.

* ``recompose``: residual OD of a slide's own pixels, and RGB from concentrations and residual;
* ``reference``, ``files``, ``qupath``: looks as numbers and as files; ``measure`` finds a slide's;
* ``frame``, ``transfer``, ``kernel``, ``weight``: from one look to another; ``pseudo``: one stain;
* ``reader``: OpenSlide's interface over it. ``distance``: how far apart two pictures are.
"""
