"""Fakes that are part of the product: a whole control plane without a node."""
