"""The engine: it knows time, devices, processes and files, and no method by name."""
