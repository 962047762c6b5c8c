"""How our own models are taught to look: scenes that carry their truth, and training on them (not in the wheel)."""
