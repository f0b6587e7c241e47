"""The only code that touches a live model: hooks, cache layers, masks, score taps, exact removal."""
