"""The OME-Zarr store of a slide's layers: metadata, writing and reading.

* ``schema``: the metadata as plain dicts.
* ``pyramid``: the codes of optical densities, and masked 2x2 means; pure numerics.
* ``store``: creates the layers, writes blocks, and finishes the coarse levels.
* ``tables``: parameter fields and the tile table.
* ``provenance``: root attributes and the done marker.
* ``reader``: ``open_layers``.

The format is described in ``docs/file-format.md``. Only the coordinator of a run writes
``zarr.json`` files, tables and markers. The owner of a block writes that block's shards, each once
and as a whole.
"""
