"""Faults on purpose: what is promised of a run that is killed, starved or lied to, as scenarios that anyone can run."""
