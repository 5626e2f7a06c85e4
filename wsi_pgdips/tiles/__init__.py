"""Selection of a slide's tiles: tissue, glass, blocks of tiles, and reading ahead.

* ``whitepoint``: finds bare glass on the slide's overview.
* ``tissue``: finds tissue on the overview, starting from tiatoolbox's masks.
* ``glass``: the field B(x), the colour of glass over the slide.
* ``surface``: a robust plane through scattered values.
* ``masks``: the user's own masks and regions, from PNG and GeoJSON.
* ``blocks``: decides which tiles are rendered and fitted, and reads them ahead of the solver.
"""
