"""Benchmarks and the data, training and reports behind every figure in the README."""
