"""One small file per dataset, each built from `common.py`."""
