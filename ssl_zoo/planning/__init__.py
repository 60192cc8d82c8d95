"""The plan of a run before it starts: cost, memory and schedules, computed without data, accelerator or weights."""
