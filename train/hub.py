"""Whether a model of the Hub can be had, asked once: without a network nobody waits for retries."""

from mlpmem.errors import MlpMemError

HUB = "hub:"  # before a name in a recipe: nothing else ever asks for the network
PATIENCE = 10.0  # seconds


def check_model(source: str) -> None:
    """Raise MlpMemError unless `source` is a path, or a model that is cached or can be reached."""
    if not source.startswith(HUB):
        return
    from huggingface_hub import HfApi, try_to_load_from_cache

    name = source.removeprefix(HUB)
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=PATIENCE)
    except Exception as error:  # of whichever library asks, and of names that cannot be
        why = str(error).partition("\n")[0]
        raise MlpMemError(
            f"recipe: cannot get {source} ({type(error).__name__}: {why}); check the network and "
            f'the name ("{HUB}owner/name"), or give a folder with the decoder'
        ) from error
