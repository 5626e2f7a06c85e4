"""The colour science that all other rooms share: optical density (OD), stain vectors, unmixing.

* ``physics``: intensity to OD and back, the forward model, unit vectors and angles.
* ``stains``: the stain library and stain files.
* ``unmix``: closed-form, non-negative unmixing per pixel.
* ``cone``: the cone of colours of two stains, and its edges.
* ``course``: a smooth course over the slide, predicted from scattered values.
* ``interpolate``: fields between their cells, by linear interpolation, and cross-fades.
"""
