"""What runs inside a sandbox, and the keeper that holds it. Standard library only, Python 3.8 syntax."""
