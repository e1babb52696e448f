"""The ``atoll`` command: data on stdout, talk on stderr, stable exit codes."""
