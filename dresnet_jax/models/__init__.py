"""Networks: layers, blocks, heads, one backbone, and the zoo of named models."""
