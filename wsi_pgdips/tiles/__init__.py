"""Selection of a slide's tiles: tissue, glass, blocks of tiles, and reading ahead.

* ``tissue``: finds tissue and glass of a slide on its overview, from what follows.
* ``fill``: pixels that were never scanned.
* ``whitepoint``: bare glass, and the density of everything else above it.
* ``gaps``: glass in gaps of the tissue, and what to assume without any.
* ``solid``: which pixels are tissue, and which are dust.
* ``brightfield``: refuses pictures that are not brightfield.
* ``maskers``, ``masks``: tiatoolbox's maskers; the user's own masks and regions, PNG and GeoJSON.
* ``glass``: the field B(x), the colour of glass over the slide.
* ``surface``, ``pixels``: a robust plane through scattered values; small filters.
* ``blocks``: decides which tiles are rendered and fitted, and reads them ahead of the solver.
"""
