"""Proof that the tests can fail: small faults are put into the core, and each must be noticed by a
test.
"""
