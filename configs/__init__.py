"""One small file per dataset, each built on `dresnet_jax.defaults`."""
