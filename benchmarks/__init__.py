"""Speed, side by side with others: ``pytest benchmarks``."""
