"""Seam-free stain concentrations of whole slides by physics-guided deep image priors."""

__version__ = "0.1.0"
