"""What `benchmark connections --peers` compares with; no part of the package."""
