"""The commands: one module per noun; parse, call the client, print."""
