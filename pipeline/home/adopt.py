"""`priorlab adopt`: a checkpoint made elsewhere, as the result of a recipe's pre-training.

Its identity is its content. The recipe gets `pretrain.adopted: DIGEST` (a sha256 over the names and sha256s of its files), and the
stage's fingerprint covers that digest and the corpus, whose tokenizer it must share. So it never replaces a model trained here: without
the key, a recipe has a different fingerprint, trains, and shares nothing with it from there on. The same files give the same stage
whatever prior, seed or schedule the recipe names, since how they were trained is unknown.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe
from pipeline.experiment.fingerprint import canonical_json
from pipeline.experiment.graph import StageNode, build_graph
from pipeline.run.launch import environment
from pipeline.run.scheduler import run
from pipeline.run.state import View
from pipeline.store.files import read_json, sha256_of, write_json_atomically
from pipeline.store.folders import Home, status_of

_KEPT = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What it takes to load a Hugging Face folder; optimizer states and READMEs stay behind."""
_ON_HUB = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")
_LEFT = {"generation_config.json"}
"""How its makers would sample, such as at which further tokens to stop: here the recipe alone says so."""


@dataclass(frozen=True)
class Adopted:
    stage: str
    digest: str
    is_new: bool


def adopt(checkpoint: str, recipe: str, overrides: list[str], home: Home, *, link: bool, view: View) -> Adopted:
    """Check the checkpoint (a folder, or a name on the hub), copy it into the store and write its record, after its corpus if need be.

    Raises `PriorlabError` if it is not a checkpoint, or does not fit the recipe.
    """
    folder_given = _folder(checkpoint)
    manifest = _manifest(folder_given)
    digest = f"sha256:{hashlib.sha256(canonical_json(manifest).encode()).hexdigest()}"
    chosen = load_recipe(recipe, [*overrides, f"pretrain.adopted={digest}"])
    graph = build_graph(chosen.cells())
    node = graph.cells[0].chain["pretrain"]
    folder = node.folder(home)
    if folder.record() is not None:
        return Adopted(folder.name, digest, is_new=False)
    corpus = graph.cells[0].chain["corpus"]
    built = run(graph, home, sweep=chosen.name, jobs=1, view=view, only={corpus.fingerprint})
    if not built.complete:
        reason = next((f"{state.reason}; log: {state.log}" for state in built.failed), "it was stopped")
        raise PriorlabError(f"{corpus.name}, whose tokenizer the checkpoint must share, could not be built: {reason}")
    source = {"source": str(folder_given.absolute()), "manifest": manifest, "link": link}
    _import(node, source, home, chosen.name)
    return Adopted(folder.name, digest, is_new=True)


def _folder(checkpoint: str) -> Path:
    """The folder itself, or the snapshot in the hub's cache of OWNER/NAME or OWNER/NAME@REVISION, downloaded if it is not there."""
    if Path(checkpoint).exists() or not _ON_HUB.fullmatch(checkpoint):
        return Path(checkpoint)
    from huggingface_hub import snapshot_download  # half a second, and folders do without

    name, _, revision = checkpoint.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_KEPT), ignore_patterns=["*/*"]))
    except Exception as error:  # of any library underneath: no network, no such name, no access
        raise PriorlabError(
            f"there is no folder {checkpoint}, and the hub gives no model {name!r}: {type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0]}. Without a network, copy the model's files to a folder and give that"
        ) from error


def _manifest(checkpoint: Path) -> dict[str, str]:
    """sha256 of each of the checkpoint's files. Raises `PriorlabError` if it is not a checkpoint."""
    if not checkpoint.is_dir():
        raise PriorlabError(f"{checkpoint} is not a folder; give the folder of a Hugging Face checkpoint")
    files = sorted({path for pattern in _KEPT for path in checkpoint.glob(pattern) if path.is_file() and path.name not in _LEFT})
    names = {path.name for path in files}
    if "adapter_config.json" in names:
        raise PriorlabError(f"{checkpoint} is an adapter to another model; merge it into that one and save the whole")
    missing = [name for name in ("config.json", "tokenizer.json") if name not in names]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    if missing:
        raise PriorlabError(
            f"{checkpoint} has no {', '.join(missing)}; write it with model.save_pretrained(...) and tokenizer.save_pretrained(...) "
            "of transformers"
        )
    for index in checkpoint.glob("*.index.json"):
        parts = set((read_json(index) or {}).get("weight_map", {}).values())
        if not parts <= names or not all(str(part).endswith(".safetensors") for part in parts):
            raise PriorlabError(
                f"{index} names files that are not .safetensors beside it; write the checkpoint with save_pretrained(...)"
            )
    return {path.name: sha256_of(path) for path in files}


def _import(node: StageNode, source: dict[str, object], home: Home, sweep: str) -> None:
    """Run `stages.adopt`, which knows models and tokenizers, in the stage's folder and under its lock."""
    folder = node.folder(home)
    lock = folder.lock()
    if lock is None:
        raise PriorlabError(f"{node.name} is being adopted by another process; wait for it")
    try:
        write_json_atomically(folder.spec, node.spec(home, sweep) | {"adopt": source})
        log = folder.new_attempt() / "stdout.log"
        command = [sys.executable, "-m", "stages.adopt", "--spec", str(folder.spec)]
        with log.open("wb") as output:
            code = subprocess.run(
                command, env=environment(node, lock, "unknown"), pass_fds=[lock], stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, check=False,
            ).returncode  # fmt: skip
    finally:
        folder.unlock(lock)
    if not folder.record_file.exists():
        message = status_of(folder).get("message", f"ended with exit code {code}")
        raise PriorlabError(f"{source['source']} was not adopted: {message}\n       log: {log}")
