"""Keeps the middle of the picture."""
