"""The bundled models: "Scenes", a small LLaVA trained on drawn scenes, "Scenes-video", a small Qwen2.5-VL trained on
drawn clips, "Pages", a small Qwen3-VL trained to read drawn documents; and pictures and a clip to ask them about."""

from filecmp import cmp
from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
IMAGE = FOLDER / "scene.png"
QUESTION = "where is the red circle ?"
VIDEO_MODEL = FOLDER / "video_model"
VIDEO = FOLDER / "clip.mp4"
VIDEO_QUESTION = "what appears first ?"
PAGES_MODEL = FOLDER / "pages_model"
PAGES = (FOLDER / "receipt.png", FOLDER / "form.png")
PAGES_QUESTIONS = ('price of "qaxuc" ?', "which box is ticked ?")  # one for each
NAMED = {
    "scenes": MODEL,
    "scenes-video": VIDEO_MODEL,
    "pages": PAGES_MODEL,
}  # words for them wherever a model is asked for


def find_picture(path: Path) -> Path:
    """The bundled picture of that name, where there is no such file; else the path as it is."""
    bundled = FOLDER / path
    return bundled if not path.exists() and bundled in (IMAGE, *PAGES) else path


def model_for(picture: Path) -> str:
    """The name of the bundled model that is asked about a picture: pages for a bundled page or a copy of one."""
    read = picture.is_file() and any(cmp(picture, page, shallow=False) for page in PAGES)
    return "pages" if read else "scenes"
