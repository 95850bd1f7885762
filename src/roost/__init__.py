"""Roost: self-hosted compute sessions."""
