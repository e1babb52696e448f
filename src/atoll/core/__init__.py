"""The vocabulary of Atoll: values and contracts. No I/O, NumPy only, imports nothing of ours."""
