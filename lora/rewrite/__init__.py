"""Converts, resizes and extracts LoRA files, and verifies the result."""
