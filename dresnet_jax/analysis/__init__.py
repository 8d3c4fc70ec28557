"""What programs cost and what runs found: figures, tables, pictures."""
