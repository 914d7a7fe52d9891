"""Searches, one strategy a file; `driver` runs them all, `settings` reads what they declare."""
