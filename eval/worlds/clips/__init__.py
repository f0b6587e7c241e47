"""Clips: short drawn videos, and the bundled model "Scenes-video" that answers questions about them."""
