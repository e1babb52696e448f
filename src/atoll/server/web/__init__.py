"""The web face of the server: connections, the gate, routes and what they answer."""
