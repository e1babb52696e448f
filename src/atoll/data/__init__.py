"""Which examples belong to whom: tables, their contract, readers, partitions, preprocessing."""
