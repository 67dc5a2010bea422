"""Experiments that count how often a run survives what is done to it; `python -m tests.torture -h`.

They are a program with a report rather than tests, because their result is a count and because the
long version takes hours. `test_torture` runs a short version of each.
"""
