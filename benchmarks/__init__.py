"""Speed and exactness as ratios: two ways of the same work, in turns, in one process. `python -m benchmarks` prints the tables."""
