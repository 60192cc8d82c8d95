"""Command-line programs; each is also installed as a command."""
