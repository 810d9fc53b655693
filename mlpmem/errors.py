"""The one exception whose text a person may see: what was got, what is allowed, what to do next."""

import re


class MlpMemError(ValueError):
    """Raised for input, files or settings that a person can put right; never for a bug."""


# /a/b/c or C:\a\b\c, up to its last part, in quotes with blanks too; not https://a/b, not and/or
FOLDERS = re.compile(
    r"""(?<=['"])(?:[A-Za-z]:)?[\\/][^'"\n]*[\\/]"""
    r"""|(?<![\w.:/\\])(?:[A-Za-z]:)?[\\/](?:[^\\/\s'"():]+[\\/])+"""
)


def public_text(error: Exception | str) -> str:
    """Return an error's sentence as anybody may read it: of a path only the last part is left."""
    return FOLDERS.sub("", str(error))
