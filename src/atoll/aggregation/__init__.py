"""Many updates become one."""
