"""From the tiles' statistics and parameters to smooth fields S(x), M(x), B(x)."""
