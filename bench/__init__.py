"""Benchmarks: every number beside its peer from the same run. ``python -m bench`` runs them all."""
