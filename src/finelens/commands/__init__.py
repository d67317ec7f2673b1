"""Verbs of the command that are about finelens itself: its settings, its cache, the machine it runs on, methods to come."""
