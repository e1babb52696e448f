"""A server that lies to the code of a node, and what comes of each lie."""
