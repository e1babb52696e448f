"""Modules of torch as models: general, compiled, in lanes, by algebra, and with privacy."""
