"""Figures of finished slides, drawn from arrays."""
