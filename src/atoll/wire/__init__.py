"""Bytes between machines: frames, messages, signatures, keys, TLS and the HTTPS client.

No code and no type names come from the wire (decision D13): schemas are closed, arrays are checked
against what is allowed before anything is allocated, and every message is signed.
"""
