"""Doors into other libraries: TIAToolbox, torch, SpatialData.

* ``normalizer``: a stain normaliser as TIAToolbox's are. ``dataset``, ``augment``: for torch.
* ``spatial``: layers as a SpatialData object.
"""
