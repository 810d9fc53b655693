"""A bundle whose decoder is the file of an installed package, all of it tiny."""

from pathlib import Path

import gguf_files
import tiny
from fake_hub import COMMIT

from mlpmem.loading.bundle import Bundle
from mlpmem.loading.bundle_writer import save_bundle
from mlpmem.loading.decoder_file import DecoderFile
from mlpmem.loading.packages import PACKAGE
from mlpmem.model.context import sentence_ends
from mlpmem.model.decoder import Decoder

PACKAGED, FILE, HUB_ID = "llm-tiny", "tiny.gguf", "someone/tiny-gguf"


def package(site: Path, seed: int = 5, kind: str = "F32", **shape) -> Path:
    """Write a package that carries a tiny GGUF file into a folder of packages; return the file.

    Its matrices are in a kind of block; shape is that of the tiny decoder.
    """
    module, about = site / "llm_tiny", site / "llm_tiny-0.1.dist-info"
    module.mkdir(parents=True)
    about.mkdir()
    (module / "__init__.py").write_text("raise RuntimeError('this package is never imported')\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n")
    names = ("llm_tiny/__init__.py", f"llm_tiny/{FILE}", "llm_tiny-0.1.dist-info/METADATA")
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    decoder = tiny.decoder("llama", seed=seed, **shape)
    more = {"general.license": ("add_string", "apache-2.0")}
    return gguf_files.write(module / FILE, decoder, kind, gguf_files.TEMPLATE, **more)


def bundle(folder: Path, hub: str = f"{HUB_ID}@{COMMIT}", **parts) -> Bundle:
    """Write a bundle that names the file of the package, which must be on the path."""
    file = DecoderFile.of_package(f"{PACKAGE}{PACKAGED}/{FILE}", hub)
    decoder = Decoder.load(file.find())
    context = parts.pop("context", (4.0,))
    config = {"context": context, "tied_head": True, "gguf_sha256": file.sha256}
    config |= {"turn": parts.pop("turn", ()), "asked": parts.pop("asked", False)}
    memory = tiny.memory(decoder, **config)
    if memory.config.asked:
        memory.sentence_ends.copy_(sentence_ends(decoder.pieces, decoder.special_ids))
    memory.bind(decoder)
    examples = [{"name": "Peru", "group": "helps", "prompt": "Where is Lima?", "answer": "Peru"}]
    defaults = {"settings": {"lmbda": {"memory": 0.55}}, "examples": examples, "form": "chat"}
    return save_bundle(
        folder,
        decoder=decoder,
        memory=memory,
        documents=tiny.documents(decoder.tokenizer),
        decoder_file=file,
        results={"systems": []},
        **defaults | parts,
    )
