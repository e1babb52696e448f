"""The coordinator's process: store, service, engine and HTTP API. It runs no job code (decision D11)."""
