"""PGDIPS for batches of tiles: the slide's prior and network, and the fits of tiles.

* ``prior``: the calibration of a slide's prior from sampled tiles.
* ``rays``: stain vectors from the edges of the cone of colours.
* ``acquisition``: noise, JPEG and defocus of a slide, estimated from its pixels.
* ``degrade``: the simulation of noise, JPEG and defocus.
* ``slide_network``: the slide's network, and tiles in focus.
* ``training``: the training of the slide's network.
* ``fit``: the fits of tiles.
* ``statistics``: sufficient statistics of tiles.
* ``optimise``: the PGDIPS loss, and the optimisation of tiles by their own networks.
* ``network``: the generator of one stain on one tile.
* ``presets``: the settings of the presets.
* ``tile``: a tile as input of the solver.

The modules import only torch, numpy and lower floors; they take and return plain records and
tensors.
"""
