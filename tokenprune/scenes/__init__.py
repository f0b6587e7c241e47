"""The bundled model "Scenes": a small LLaVA trained on drawn scenes, and a picture to ask it about."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
IMAGE = Path(__file__).parent / "scene.png"
QUESTION = "where is the red circle ?"
