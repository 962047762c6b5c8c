"""Vision transformers: one library a file."""
