"""Adapters to other libraries: TIAToolbox, torch and SpatialData.

* ``normalizer``: a stain normaliser with TIAToolbox's interface.
* ``dataset``, ``augment``: normalised tiles and stain augmentation for torch.
* ``spatial``: layers as a SpatialData object.
"""
