"""Bytes by their digest: in a folder, in the database where they are small, in an object store."""
