"""A run at the server: its calls to sites, their answers, sums and commits."""
