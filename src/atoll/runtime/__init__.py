"""Where a job runs: the round loop, its virtual clock and its executors."""
