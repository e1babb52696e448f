"""Published results, re-run: ``make targets``."""
