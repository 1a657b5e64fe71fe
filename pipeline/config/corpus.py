"""The text to pre-train on: weighted sources, the tokenizer that cuts it, and how much of it there is.

Self-contained, so that a recipe may hold several. What lies in files counts by its content: digests are filled in when the config is
read, and the stage refuses content that has changed since.
"""

from __future__ import annotations

import glob
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Config, execution, identity_since
from pipeline.config.digests import digest_of_digests, file_digest, library_digest

FORMATS = ("jsonl", "parquet", "txt")
COMPRESSIONS = (".gz", ".zst")
# Whatever of these a folder holds makes its tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "chat_template.jinja",
)  # fmt: skip


class Source(Config):
    """What every source of text has."""

    weight: float = Field(1.0, ge=0, description="share of the blocks, relative to the other sources; 0 leaves this one out")


class TaskSource(Source):
    """Worked solutions of the recipe's task; drawn anew as long as text is needed."""

    kind: Literal["task"] = "task"


class _Documents(Source):
    """A source with so many documents and no more."""

    passes: int = Field(1, ge=1, description="how often its training documents may be used; each time in another order")


class TextFile(Config):
    """A file, known by its content wherever it lies."""

    path: str = execution(...)
    format: Literal["jsonl", "parquet", "txt"]
    sha256: str


class FilesSource(_Documents):
    """Files of text: .jsonl and .parquet with a column, .txt with one document or, with a separator, several; .gz and .zst too."""

    kind: Literal["files"] = "files"
    paths: tuple[str, ...] = execution((), description="paths and globs, ** for folders within folders")
    column: str = Field("text", min_length=1, description="column of the text in .jsonl and .parquet; may lie in another: a.b")
    separator: str | None = Field(None, min_length=1, description="what stands between two documents of a .txt file")
    files: tuple[TextFile, ...] = Field((), description="filled in from paths")

    @model_validator(mode="before")
    @classmethod
    def _find_files(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("files"):
            return data
        paths = data.get("paths", ())
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, (list, tuple)) or not all(isinstance(path, str) for path in paths):
            return data
        found = {str(path): _text_file(path) for pattern in paths for path in _matches(pattern)}
        if not found:
            raise ValueError("paths is empty; give at least one file, e.g. paths: [texts/*.jsonl.zst]")
        return data | {"paths": paths, "files": list(found.values())}

    @field_validator("files")
    @classmethod
    def _in_the_order_of_content(cls, files: tuple[TextFile, ...]) -> tuple[TextFile, ...]:
        """So that the documents, too, come in an order that names do not decide."""
        return tuple(sorted(files, key=lambda file: (file.sha256, file.format)))


def _matches(pattern: str) -> list[Path]:
    expanded = str(Path(pattern).expanduser().absolute())
    if not glob.has_magic(expanded):
        return [Path(expanded)]
    root = Path(expanded).anchor
    found = sorted(path for path in Path(root).glob(expanded.removeprefix(root)) if path.is_file())
    if not found:
        raise ValueError(f"paths has {pattern!r}, which matches no file ({expanded})")
    return found


def _text_file(path: Path) -> dict[str, str]:
    kind = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if kind.removeprefix(".") not in FORMATS or (kind == ".parquet" and path.suffix in COMPRESSIONS):
        raise ValueError(f"paths has {str(path)!r}; a file must end in .jsonl or .txt (then perhaps .gz or .zst), or in .parquet")
    try:
        return {"path": str(path), "format": kind.removeprefix("."), "sha256": file_digest(path)}
    except OSError as error:
        raise ValueError(f"paths has {str(path)!r}, which cannot be read: {error.strerror}") from error


class HubSource(_Documents):
    """A data set of the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    dataset: str = Field(min_length=1, description="its name, e.g. Salesforce/wikitext")
    subset: str | None = Field(None, description="its configuration, e.g. wikitext-103-raw-v1")
    split: str = Field("train", description="a part of it as well: train[:1%]")
    revision: str | None = Field(None, description="commit or tag; without it, whatever the hub has")
    column: str = Field("text", min_length=1)
    documents: int | None = identity_since(
        None, ge=1, description="read so many as a stream, and fetch no more than these; without it, the whole split"
    )

    @model_validator(mode="after")
    def _streams_whole_splits(self) -> HubSource:
        if self.documents is not None and "[" in self.split:
            raise ValueError(
                f"split is {self.split!r}, but a stream (documents) has whole splits only; give split: {self.split.partition('[')[0]}"
            )
        return self


class StdlibSource(_Documents):
    """Modules of the running Python's standard library with their doc strings, without its tests: text that is always there."""

    kind: Literal["stdlib"] = "stdlib"
    python: str = Field("", description="filled in")
    sha256: str = Field("", description="filled in: of all modules")

    @model_validator(mode="before")
    @classmethod
    def _identify(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("sha256"):
            return data
        return data | {"python": platform.python_version(), "sha256": library_digest()}


AnySource = Annotated[TaskSource | FilesSource | HubSource | StdlibSource, Field(discriminator="kind")]


class CharacterTokenizer(Config):
    """One token per character of the text."""

    kind: Literal["characters"] = "characters"


class BPETokenizer(Config):
    """Byte-level BPE, trained on the corpus: no text is without a token."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(ge=258, description="tokens, the 256 bytes, end-of-text and padding among them")
    train_characters: int = Field(10_000_000, ge=1, description="of the training text, from each source by its weight")


class PretrainedTokenizer(Config):
    """A tokenizer made elsewhere, of the hub or a local folder. A folder counts by its tokenizer's files, wherever it lies."""

    kind: Literal["pretrained"] = "pretrained"
    hub: str | None = Field(None, description="name on the hub, e.g. Qwen/Qwen3-0.6B-Base")
    revision: str | None = Field(None, description="commit or tag on the hub; without it, whatever the hub has")
    folder: str | None = execution(None, description="a local folder with a tokenizer instead")
    sha256: str | None = Field(None, description="filled in for a folder")

    @model_validator(mode="before")
    @classmethod
    def _identify(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("folder"), str) or data.get("sha256"):
            return data
        folder = Path(data["folder"]).expanduser().absolute()
        digest = tokenizer_digest(folder)
        if digest is None:
            raise ValueError(f"folder is {data['folder']!r}, which holds no tokenizer.json or other files of a tokenizer ({folder})")
        return data | {"folder": str(folder), "sha256": digest}

    @model_validator(mode="after")
    def _one_place(self) -> PretrainedTokenizer:
        if (self.hub is None) == (self.folder is None):
            raise ValueError(f"hub is {self.hub!r} and folder {self.folder!r}; give exactly one of the two (and null for the other)")
        return self


def tokenizer_digest(folder: Path) -> str | None:
    """sha256 over the files of a folder that make a tokenizer; None if there are none."""
    found = [(name, file_digest(folder / name)) for name in TOKENIZER_FILES if (folder / name).is_file()]
    return digest_of_digests(found) if found else None


AnyTokenizer = Annotated[CharacterTokenizer | BPETokenizer | PretrainedTokenizer, Field(discriminator="kind")]


class CorpusConfig(Config):
    """Text, cut into tokens and packed into equal blocks. Without `sources`, it is that of the task, counted in documents."""

    name: str = execution("corpus")
    documents: int | None = identity_since(None, ge=1, description="of the task, where there are no sources")
    heldout_documents: int | None = identity_since(None, ge=1, description="from problems no training document uses")
    tokens: int | None = identity_since(None, ge=1, description="of all sources together, in whole blocks")
    heldout_tokens: int | None = identity_since(None, ge=1, description="of documents that are not trained on, in the same shares")
    block_size: int = Field(ge=2, description="tokens per training sequence")
    seed: int = 0
    sources: dict[str, AnySource] = identity_since({}, description="by names of your choice")
    tokenizer: AnyTokenizer = identity_since(CharacterTokenizer())
    heldout_share: float = identity_since(0.01, gt=0, lt=1, description="of documents of files, hub and stdlib, chosen by their hash")
    max_bad_share: float = execution(0.01, ge=0, le=1, description="the stage stops when a larger share of a source cannot be read")
    num_proc: int = execution(1, ge=1, description="processes that tokenise")

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _by_kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_size(self) -> CorpusConfig:
        counts = {"documents": self.documents, "heldout_documents": self.heldout_documents}
        sizes = {"tokens": self.tokens, "heldout_tokens": self.heldout_tokens}
        given = {name for name, size in (counts | sizes).items() if size is not None}
        if given != set(sizes) and (given != set(counts) or self.sources):
            allowed = "tokens and heldout_tokens" + ("" if self.sources else ", or documents and heldout_documents")
            raise ValueError(
                f"{' and '.join(sorted(given)) or 'no size'} given{' beside sources' if self.sources else ''}; set {allowed}, and "
                "nothing else (null takes a size back)"
            )
        return self

    @model_validator(mode="after")
    def _every_source_has_a_block(self) -> CorpusConfig:
        if self.sources and not any(source.weight for source in self.sources.values()):
            raise ValueError("sources: all weights are 0; give at least one a weight above it")
        for key, size in (("tokens", self.tokens), ("heldout_tokens", self.heldout_tokens)):
            without = [name for name, blocks in ({} if size is None else self.shares(size)).items() if blocks == 0]
            if without:
                raise ValueError(
                    f"{key} is {size}: in blocks of {self.block_size} none is left for {', '.join(without)}; raise {key}, or the weight"
                )
        return self

    @property
    def used_sources(self) -> dict[str, AnySource]:
        """Those with a weight, in the order of their names."""
        if not self.sources:
            return {"task": TaskSource()}
        return {name: self.sources[name] for name in sorted(self.sources) if self.sources[name].weight > 0}

    def shares(self, tokens: int) -> dict[str, int]:
        """Blocks per source: weight / sum of weights of all blocks, rounded so that they add up (largest remainders first)."""
        total, sources = tokens // self.block_size, self.used_sources
        whole = sum(source.weight for source in sources.values())
        exact = {name: total * source.weight / whole for name, source in sources.items()}
        blocks = {name: int(quota) for name, quota in exact.items()}
        by_remainder = sorted(exact, key=lambda name: (blocks[name] - exact[name], name))
        for name in by_remainder[: total - sum(blocks.values())]:
            blocks[name] += 1
        return blocks

    @property
    def size(self) -> str:
        """For people."""
        return f"{self.documents:,} documents" if self.tokens is None else f"{self.tokens:,} tokens of {', '.join(self.used_sources)}"

    @property
    def uses_task(self) -> bool:
        """Whether the recipe's task decides what is in it."""
        return self.tokenizer.kind == "characters" or any(source.kind == "task" for source in self.used_sources.values())

    @property
    def reads_hub(self) -> bool:
        """Whether it needs the Hugging Face hub, apart from what the task needs."""
        from_hub = any(source.kind == "hub" for source in self.used_sources.values())
        return from_hub or (isinstance(self.tokenizer, PretrainedTokenizer) and self.tokenizer.hub is not None)

    def identity(self) -> dict[str, Any]:
        """Weights are shares there, and sources without one are not."""
        kept = super().identity()
        if self.sources:
            whole = sum(source.weight for source in self.used_sources.values())
            kept["sources"] = {
                name: source.identity() | {"weight": source.weight / whole} for name, source in self.used_sources.items()
            }
        return kept
