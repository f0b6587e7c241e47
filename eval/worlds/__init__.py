"""Two drawn worlds, scenes and clips, and one experiment: train a small model, judge it, compare methods on it."""
