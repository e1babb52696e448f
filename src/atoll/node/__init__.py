"""A site's process: its keys, its data, and the worker that runs job code apart from both."""
