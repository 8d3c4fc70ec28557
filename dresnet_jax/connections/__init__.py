"""Learned connections between the blocks of a network; knows nothing of images."""
