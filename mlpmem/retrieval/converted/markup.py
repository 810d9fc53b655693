"""The visible text of a web page, by the standard library's parser, which keeps no tree."""

import codecs
import re
from html.parser import HTMLParser

CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
HEAD = 4096  # bytes in which a page names its encoding
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
UNSEEN = {"script", "style", "template", "noscript", "head", "svg", "math", "iframe", "object",
          "audio", "video", "canvas", "select", "datalist"}  # fmt: skip
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source",
        "track", "wbr"}  # fmt: skip
LINES = {"li", "dt", "dd", "tr", "div", "option", "figcaption", "caption", "address"}
PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre", "hr",
              "blockquote", "section", "article", "header", "footer", "nav", "aside", "main",
              "figure", "form", "fieldset", "details", "summary", "body"}  # fmt: skip
OPEN = {"p", "li", "dt", "dd", "tr", "td", "th", "option"}  # elements whose end tag may be omitted


def decoded(raw: bytes) -> str:
    """Return a page's bytes as text: by its mark, by what it names, else as UTF-8."""
    named = CHARSET.search(raw[:HEAD])
    encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), None)
    encoding = encoding or (named[1].decode("ascii", "replace") if named else "utf-8")
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        why = f"names an encoding that is not known: {encoding}; save it as UTF-8"
        raise ValueError(why) from None
    except UnicodeError:
        raise ValueError(f"is not {encoding.upper()} text; save it as UTF-8") from None


def visible_text(page: str) -> str:
    """Return the text of a page that is seen: without scripts, styles and hidden elements."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    lines = [line.rstrip() for line in "".join(reader.parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


class _Reader(HTMLParser):
    """Collects the text between tags, with line ends where a browser begins a line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.preformatted = 0
        self.hidden = ""  # the tag of an element that is not seen, "" outside one
        self.depth = 0  # elements of that tag that are open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.hidden:
            if self.hidden in OPEN and (tag == self.hidden or tag in PARAGRAPHS):
                self.hidden = ""  # its end tag was omitted
            elif self.hidden == "head" and tag == "body":
                self.hidden = ""
            else:
                self.depth += tag == self.hidden
                return
        self._break(tag)
        if tag in UNSEEN or (tag not in VOID and _is_hidden(dict(attrs))):
            self.hidden, self.depth = tag, 1
            return
        self.preformatted += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self.hidden:
            self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.hidden:
            self.depth -= tag == self.hidden
            if not self.depth or (self.hidden in OPEN and tag in PARAGRAPHS):
                self.hidden = ""
            return
        self._break(tag)
        self.preformatted = max(0, self.preformatted - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self.hidden:
            return
        if not self.preformatted:
            data = re.sub(r"[ \t\n\r\f]+", " ", data)
            if not self.parts or self.parts[-1][-1] in " \n":
                data = data.removeprefix(" ")
        if data:
            self.parts.append(data)

    def _break(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self.parts.append("\n\n")
        elif tag == "br" or (tag in LINES and self.parts and self.parts[-1][-1] != "\n"):
            self.parts.append("\n")
        elif tag in ("td", "th") and self.parts and self.parts[-1][-1] not in " \n":
            self.parts.append(" ")


def _is_hidden(attributes: dict[str, str | None]) -> bool:
    """Return whether an element's own attributes hide it."""
    style = re.sub(r"\s", "", (attributes.get("style") or "")[:1000].lower())
    return "hidden" in attributes or "display:none" in style or "visibility:hidden" in style
