"""Epsilons of sampled Gaussian noise that others have published (T18)."""

BATCH = 250 / 60_000

TABLE = [
    (BATCH, 1.3, 3600, 1e-5, 1.1799, 0.942, 0.853),
    (BATCH, 1.1, 14400, 1e-5, 2.9701, 2.562, 2.350),
    (BATCH, 0.7, 10800, 1e-5, 7.0242, 6.234, 5.562),
    (0.01, 4.0, 10000, 1e-5, 1.2586, 1.035, 0.947),
    (0.1, 1.0, 100, 1e-5, None, 7.904, 7.047),
    (0.01, 0.8, 1000, 1e-6, None, 4.294, 3.706),
    (0.05, 1.5, 500, 1e-5, None, 4.144, 3.785),
]
"""Sampling q, multiplier z, rounds, delta; epsilon by the classic rule, by RDP and PLD of dp-accounting."""
