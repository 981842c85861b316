"""Benchmarks of speed and exactness, given as ratios. `python -m benchmarks` prints the tables."""
