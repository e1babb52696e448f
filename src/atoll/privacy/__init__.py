"""Why an update may be shown."""
