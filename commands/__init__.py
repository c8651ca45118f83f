"""The commands of lora-locksmith: one module each, with `add` (its arguments) and `run` (what it
does; returns the exit code).
"""
