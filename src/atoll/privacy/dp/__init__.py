"""Differential privacy: what is released costs something, and the cost is written down.

======================  ========================================================================
module                  what
======================  ========================================================================
``events``              what a mechanism did, as plain immutable data; what a guarantee says
``accounting``          from events to epsilon, and to what an attack may find
``losses``              composed privacy losses (PLD), from which both are read
``calibration``         from a goal in either back to the least noise
``rdp``                 the same by Renyi divergence, with NumPy alone: a second opinion
``noise``               random numbers that may protect somebody: from the system, never from a seed
``normal``              normal draws from random bits, fast
``lattice``             integer noise: discrete Gaussian, geometric, Poisson, Skellam
``distributed``         noise in shares, one at each site, enough when some are lost
``clipping``            bounds on what one unit may contribute
``matrix``              noise that is correlated over rounds, for jobs that cannot sample
``buffers``             which buffers do the work of many bands in it
======================  ========================================================================
"""
