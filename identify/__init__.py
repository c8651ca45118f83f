"""Recognizes base models and trainers from names and shapes. Standard library only."""
