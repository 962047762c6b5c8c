"""Models of pictures and words: two towers, or one that reads the other."""
