"""Comparisons of models: several seeds of several variants, and what they show."""
