"""The adapter kinds, one file each in `kinds/`: all that plan, mathematics, writing, host and
bypass ask of a kind. No torch at import.
"""
