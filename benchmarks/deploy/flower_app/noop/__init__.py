"""Training that adds a constant, for Flower."""
