"""The one exception whose text a user may see: what was got, what is allowed, what to do next."""

import re


class MlpMemError(ValueError):
    """Raised for input, files or settings that a user can correct; never for a bug."""


# /a/b/c or C:\a\b\c up to the last part, with blanks if quoted; neither https://a/b nor and/or
FOLDERS = re.compile(
    r"""(?<=['"])(?:[A-Za-z]:)?[\\/][^'"\n]*[\\/]"""
    r"""|(?<![\w.:/\\])(?:[A-Za-z]:)?[\\/](?:[^\\/\s'"():]+[\\/])+"""
)


def public_text(error: Exception | str) -> str:
    """Return an error's text with every path cut to its last part."""
    return FOLDERS.sub("", str(error))


def sentence(text: str) -> str:
    """Return a text with a capital first letter, unless it begins with the name of a file."""
    first, *_ = text.split(" ", 1)
    return text if "." in first.rstrip(".") else text[:1].upper() + text[1:]
