"""The methods, one module or folder each, with their registry; what several of them share is in ``parts``."""
