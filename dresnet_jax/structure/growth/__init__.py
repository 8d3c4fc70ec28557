"""Networks that grow while they are trained: what may be added, when and where."""
