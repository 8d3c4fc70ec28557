"""Comparisons of models: several seeds of several variants, and their report."""
