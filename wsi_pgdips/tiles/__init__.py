"""From a slide to the tiles worth fitting: tissue, glass, blocks of tiles, prefetching reads.

``tissue`` makes the mask on the slide's overview, starting from ``whitepoint``'s bare glass;
``glass`` says how the glass's colour drifts over the slide (along a ``surface``), ``masks`` reads
masks and regions that the user brings, ``grid`` decides which
tiles are rendered and which are fitted, ``stream`` reads them ahead of the solver.
"""
