"""Data and interfaces that client, control plane and node share. Nothing here does I/O."""
