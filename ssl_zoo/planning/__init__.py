"""The plan of a run before it starts: cost, memory and schedules, worked out without data, accelerator or weights."""
