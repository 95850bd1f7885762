"""The control plane: what is written down, and who runs next."""
