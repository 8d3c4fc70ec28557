"""Datasets: what they are, where they come from, and the batches made of them."""
