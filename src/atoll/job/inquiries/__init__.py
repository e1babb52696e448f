"""What may be asked of the tables of several sites, by name: for job files and for ``atoll.stats``."""
