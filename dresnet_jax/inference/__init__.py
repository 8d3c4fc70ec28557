"""Classifying images with a trained network: as a run, in part, or exported."""
