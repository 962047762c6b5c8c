"""Where the tokens of a vision model stand, found by running the model on indices instead of a picture."""
