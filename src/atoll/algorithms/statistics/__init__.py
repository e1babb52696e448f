"""Analyses without a model: what statisticians publish, as rounds of sums (decision D4)."""
