"""The room in which job code runs at a site, and the process in it."""
