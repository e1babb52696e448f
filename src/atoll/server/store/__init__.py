"""What the server remembers: SQLite by default, PostgreSQL by URL, and a twin in memory for tests."""
