"""The version of finelens."""

__version__ = "0.1.0"
