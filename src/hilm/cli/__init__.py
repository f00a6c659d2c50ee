"""The command line: one lazy table of commands over the public verbs."""
