"""Adapted classifiers for other runtimes."""
