"""The command of the compatible client."""
