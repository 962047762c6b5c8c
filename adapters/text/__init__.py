"""Models that read text, one library a file."""
