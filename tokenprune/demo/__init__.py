"""The demo app: one question, unpruned and pruned, side by side."""
