"""Architectures found by evolution: the space, a population, its generations."""
