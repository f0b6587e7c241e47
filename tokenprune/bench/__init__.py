"""Dense, pruned and ideal, side by side: what pruning really saves."""
