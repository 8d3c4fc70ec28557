"""What `python -m dresnet_jax.compare` trains; a file a study."""
