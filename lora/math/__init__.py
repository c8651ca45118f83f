"""The mathematics of adapters on weights."""
