"""Data sets by name and layout: where each part comes from, and how to get what is missing."""
