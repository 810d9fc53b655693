"""How other sites show a link to the page: title, sentence and picture in place of Gradio's own."""

import html
import re
from pathlib import Path

ADDRESS = "/preview.png"
SIZE = 1200, 630  # pixels of the picture
TAGS = re.compile(rb'\s*<meta\s+(?:property="og:|name="twitter:)[^>]*>')
HEAD = re.compile(rb"<head>")


class Preview:
    """The tags of one page's preview, and its picture."""

    def __init__(self, title: str, sentence: str, picture: Path | None = None) -> None:
        """Use a title, a sentence and a PNG of SIZE, which shows one corpus's figures."""
        self.title, self.sentence = title, sentence
        self.picture = picture.read_bytes() if picture else b""

    def tags(self, root: str, path: str = "/") -> str:
        """Return the markup of the tags for a path at an address, which has no "/" at its end."""
        values = {
            "og:title": self.title, "og:description": self.sentence, "og:type": "website",
            "og:url": f"{root}{path}",
        }  # fmt: skip
        twitter = {
            "twitter:card": "summary_large_image" if self.picture else "summary",
            "twitter:title": self.title, "twitter:description": self.sentence,
        }  # fmt: skip
        if self.picture:
            width, height = map(str, SIZE)
            values |= {"og:image": f"{root}{ADDRESS}", "og:image:width": width,
                       "og:image:height": height, "og:image:alt": self.sentence}  # fmt: skip
            twitter["twitter:image"] = f"{root}{ADDRESS}"
        lines = [f'<meta property="{k}" content="{html.escape(v)}">' for k, v in values.items()]
        lines += [f'<meta name="{k}" content="{html.escape(v)}">' for k, v in twitter.items()]
        return "\n".join(
            [*lines, f'<meta name="description" content="{html.escape(self.sentence)}">']
        )

    def placed(self, kind: bytes, body: bytes, root: str, path: str = "/") -> tuple[bytes, bytes]:
        """Return (kind, body) of a page with these tags only; other kinds do not change."""
        if not kind.startswith(b"text/html"):
            return kind, body
        tags = f"<head>\n{self.tags(root, path)}".encode()
        return kind, HEAD.sub(lambda _: tags, TAGS.sub(b"", body), count=1)
