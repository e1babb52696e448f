"""Framework adapters, one file each; all implement :class:`atoll.core.contracts.Trainer`."""
