"""How fast and how small roost is, beside what its users would pick instead."""
