"""What it costs that a server sees sums only: masked and encrypted rounds, and Flower's SecAgg+."""
