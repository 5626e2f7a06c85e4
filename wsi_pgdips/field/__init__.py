"""The smooth fields S(x), M(x) and B(x), from the tiles' statistics and parameters.

* ``blend``: the three fields on the whole tile grid (``blend_fields``).
* ``stains``: the field S(x).
* ``cells``: the statistics of cells, and their sums.
"""
