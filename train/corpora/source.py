"""A recipe's existing decoder: a folder, a GGUF file, a package's file or a model of the Hub."""

from mlpmem.loading.hub import fetch
from mlpmem.loading.packages import PACKAGE, packaged_file
from mlpmem.model.decoder import Decoder
from train.config.load import HUB, check_model


def located(source: str) -> str:
    """Return a source as a path, or as the Hub's name for it; "" stays "".

    MlpMemError for a package that is not installed.
    """
    if source.startswith(PACKAGE):
        return str(packaged_file(source))
    return source.removeprefix(HUB)


def load_source(source: str) -> Decoder:
    """Return the decoder of a source; from the Hub only if it begins with "hub:"."""
    check_model(source)
    local = not source.startswith(HUB)
    return Decoder.load(fetch(located(source), "decoder", local_files_only=local))
