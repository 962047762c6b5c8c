"""Decoders of one stream: a picture's tokens stand among the words of a prompt."""
