"""The commands: their work, and their output."""
