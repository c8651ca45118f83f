"""Benchmarks: ratios to other ways of doing the same. `python dev.py bench` runs them all,
test_bench.py in a short form.
"""
