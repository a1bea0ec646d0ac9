"""Benchmark the speed and memory of models in several forms."""
