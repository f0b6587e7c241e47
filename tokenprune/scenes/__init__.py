"""The bundled models: "Scenes", a small LLaVA trained on drawn scenes, and "Scenes-video", a small Qwen2.5-VL trained
on drawn clips; and a picture and a clip to ask them about."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
IMAGE = Path(__file__).parent / "scene.png"
QUESTION = "where is the red circle ?"
VIDEO_MODEL = Path(__file__).parent / "video_model"
VIDEO = Path(__file__).parent / "clip.mp4"
VIDEO_QUESTION = "what appears first ?"
NAMED = {"scenes": MODEL, "scenes-video": VIDEO_MODEL}  # words for them wherever a model is asked for
