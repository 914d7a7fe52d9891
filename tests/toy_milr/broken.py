"""A part whose import fails, as happens with half-installed packages."""

NAME = "broken"
SUMMARY = "cannot be imported, for tests"

raise ImportError("no module named 'missing_library'")
