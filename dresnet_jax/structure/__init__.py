"""Changes of what a trained network is."""
