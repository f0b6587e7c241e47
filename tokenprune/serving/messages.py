"""Messages as OpenAI's clients send them, as `Chat.batch` takes them."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tokenprune.chat import Chat
from tokenprune.errors import BadInput
from tokenprune.media.clip import Clip
from tokenprune.media.pictures import load_image
from tokenprune.serving.fetch import fetch

DATA = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<options>(;[\w.=+-]+)*),(?P<body>.*)", re.DOTALL)
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Reader:
    """Reads messages for a model. frames: of a video, evenly spread. fetches: whether addresses may be opened."""

    chat: Chat
    frames: int = 32
    fetches: bool = False
    most_bytes: int = 32 * 2**20  # of one picture or video

    def read(self, messages: list[Any]) -> list[dict[str, Any]]:
        """The conversation with its pictures and clips open. Raises `BadInput` that names the part which is wrong."""
        if not messages:
            raise BadInput("messages is empty. Send at least one of the user's.")
        return [self._message(message, f"messages[{i}]") for i, message in enumerate(messages)]

    def _message(self, message: Any, where: str) -> dict[str, Any]:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadInput(f"{where} needs a role: {', '.join(ROLES)}.")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not content:
            raise BadInput(f"{where}.content must be text, or a list of parts.")
        parts = [self._part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
        return {"role": "system" if message["role"] == "developer" else message["role"], "content": parts}

    def _part(self, part: Any, where: str) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return {"type": "text", "text": part["text"]}
        readers: dict[str, tuple[str, Callable[[bytes], Any]]] = {
            "image_url": ("image", self._image),
            "video_url": ("video", self._video),
        }
        if kind not in readers:
            raise BadInput(f"{where} is no part that is served here: text, image_url and video_url are.")
        url = part.get(kind)
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str):
            raise BadInput(f'{where}.{kind} needs an address: {{"url": "data:..."}}.')
        name, read = readers[kind]
        try:
            return {"type": name, name: read(self._bytes(url))}
        except BadInput as error:
            raise BadInput(f"{where}.{kind}: {error}") from error

    def _bytes(self, url: str) -> bytes:
        if url.startswith("data:"):
            return _decode(url, self.most_bytes)
        if not url.startswith(("http://", "https://")):
            raise BadInput("Send the file itself, as data:image/png;base64,... (or video/mp4).")
        if not self.fetches:
            raise BadInput("This server opens no addresses. Send the file as a data: URI, or start it with --fetch.")
        return fetch(url, self.most_bytes)

    def _image(self, found: bytes) -> Image.Image:
        return _open(found, load_image)

    def _video(self, found: bytes) -> Clip:
        return _open(found, lambda path: self.chat.load_video(path, frames=self.frames))


def _decode(url: str, most_bytes: int) -> bytes:
    match = DATA.fullmatch(url)
    if match is None or "base64" not in match["options"].split(";"):
        raise BadInput("This is no data: URI in base64, as data:image/png;base64,...")
    if len(match["body"]) * 3 // 4 > most_bytes:
        raise BadInput(f"The file has more than {most_bytes:,} bytes, this server's limit.")
    try:
        found = base64.b64decode(match["body"], validate=True)
    except binascii.Error as error:
        raise BadInput(f"The data: URI is broken: {error}.") from error
    if not found:
        raise BadInput("The data: URI is empty.")
    return found


def _open(found: bytes, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a file that holds these bytes; its errors do not tell where the server keeps it."""
    with tempfile.TemporaryDirectory(prefix="tokenprune-") as folder:
        path = Path(folder) / "file"
        path.write_bytes(found)
        try:
            return read(path)
        except BadInput as error:
            raise BadInput(str(error).replace(str(path), "the file")) from error
