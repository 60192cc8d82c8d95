"""Fault injection: scenarios that kill processes, fill disks and damage files, and check that runs survive."""
