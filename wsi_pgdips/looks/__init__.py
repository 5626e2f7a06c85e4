"""From concentrations back to RGB: the slide itself, or what the model says without the rest.

* ``recompose``: residual OD of a slide's own pixels, and RGB from concentrations and residual.
"""
