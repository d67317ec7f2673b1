"""Runs a backbone on a device: precision, memory, compilation, several processes, and what it cost."""
