"""The one exception whose text a person may see: what was got, what is allowed, what to do next."""


class MlpMemError(ValueError):
    """Raised for input, files or settings that a person can put right; never for a bug."""
