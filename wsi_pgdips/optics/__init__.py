"""Shared science: optical density, stain vectors, the forward model. Imports no other room."""
