"""Many slides: what is to be done with each, who does it, and what became of it."""
