"""Every model type whose visual features are rows of a decoder, tried on tiny random models."""
