"""Rows of the benchmark: how each is made, one method on one set under one protocol."""
