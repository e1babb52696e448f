"""Atoll beside other systems on the same work: ``python -m benchmarks.peers.run``, see there."""
