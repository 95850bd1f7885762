"""The API classes, one module each."""
