"""Measurements. `pytest bench/` runs them all in a short form; README.md says how to read what they print."""
