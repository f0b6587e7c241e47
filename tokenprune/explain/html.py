"""Self-contained HTML pages: no file, font or script from anywhere else."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #8884; text-align: right }
th:first-child, td:first-child { text-align: left }
th { cursor: pointer }
img { max-width: 100% }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top }
figcaption { font-size: .85em; opacity: .8 }
"""


def document(title: str, body: str, script: str = "", style: str = "") -> str:
    """A whole page; `body` is HTML, `title` text. Nothing in it may be fetched from outside."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{style}</style></head>\n'
        f"<body>{body}{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def picture(image: Image.Image | bytes, text: str) -> str:
    """A picture inside the page, described by `text`."""
    return f'<img alt="{escape(text)}" src="{picture_data(image)}">'


def picture_data(image: Image.Image | bytes) -> str:
    """A picture (or the bytes of a PNG) as a data address."""
    if isinstance(image, Image.Image):
        stored = io.BytesIO()
        image.save(stored, "PNG")
        image = stored.getvalue()
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
