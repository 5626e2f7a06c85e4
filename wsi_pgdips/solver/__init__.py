"""PGDIPS for batches of tiles: network, losses, stain rays, slide-level prior, per-tile fits.

Imports only torch, numpy and the ground floor; takes and gives plain records and tensors.
"""
