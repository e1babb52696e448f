"""Atoll deployed on one machine, beside Flower deployed and plain sockets, on work that is no work."""
