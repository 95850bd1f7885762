"""Who runs next, and where."""
