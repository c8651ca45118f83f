"""Reads and writes tensors."""
