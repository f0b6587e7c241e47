"""Scenes: the synthetic picture-question world that the bundled model is trained and judged on."""
