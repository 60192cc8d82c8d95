"""How fast recipes train on this machine, measured side by side."""
