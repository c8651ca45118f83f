"""Merges LoRAs."""
