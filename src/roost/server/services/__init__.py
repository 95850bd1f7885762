"""What the platform can do: one module per noun, one function per verb."""
