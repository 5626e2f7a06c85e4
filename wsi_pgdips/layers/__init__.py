"""The OME-Zarr layers of a slide: their metadata, how blocks are written, how they are read back.

* ``schema``: metadata as plain dicts. ``pyramid``: codes and masked 2x2 means, pure numerics.
* ``store``: create, write blocks, finalize. ``tables``: parameter fields and the tile table.
* ``provenance``: root attributes and the done marker. ``disk``: atomic writes, write errors.
* ``reader``: ``open_layers``. ``render``: concentrations of a block under the blended fields.

The format is in ``docs/file-format.md``. Only the coordinator of a run writes ``zarr.json`` files,
tables and markers; the owner of a block writes that block's shards, each once and whole.
"""
