"""The text to pre-train on: weighted sources, the tokenizer, and how much of it to use.

Self-contained, so that a recipe may hold several. Files are identified by content: digests are filled in when the config is read, and
the stage refuses files that have changed since.
"""

from __future__ import annotations

import glob
import os
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Config, execution, identity_since
from pipeline.config.digests import digest_of_digests, file_digest, library_digest

FORMATS = ("jsonl", "parquet", "txt")
COMPRESSIONS = (".gz", ".zst")
# A folder's tokenizer is whichever of these it holds.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "chat_template.jinja",
)  # fmt: skip


class Source(Config):
    """What every source of text has."""

    weight: float = Field(1.0, ge=0, description="share of the blocks, relative to the other sources; 0 leaves this one out")


class TaskSource(Source):
    """Worked solutions of the recipe's task, sampled as long as text is needed."""

    kind: Literal["task"] = "task"


class _Documents(Source):
    """A source with a finite number of documents."""

    passes: int = Field(1, ge=1, description="how often its training documents may be used, reshuffled each time")


class TextFile(Config):
    """A file, identified by content, not by path."""

    path: str = execution(...)
    format: Literal["jsonl", "parquet", "txt"]
    sha256: str


class FilesSource(_Documents):
    """Text files: .jsonl and .parquet with a text column, .txt with one document, or several if separator is set; .gz and .zst too."""

    kind: Literal["files"] = "files"
    paths: tuple[str, ...] = execution((), description="paths and globs; ** matches nested folders, linked ones too")
    column: str = Field("text", min_length=1, description="column with the text in .jsonl and .parquet; may be nested: a.b")
    separator: str | None = Field(None, min_length=1, description="what separates the documents of a .txt file")
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
        """So that file names do not decide the order of documents either."""
        return tuple(sorted(files, key=lambda file: (file.sha256, file.format)))


def _matches(pattern: str) -> list[Path]:
    """The files of a path or glob. Leading parts that exist by that very name are taken literally: a folder may be `run[1]`."""
    path = Path(pattern).expanduser().absolute()
    base, parts = Path(path.anchor), list(path.parts[1:])
    while parts and os.path.lexists(base / parts[0]):
        base /= parts.pop(0)
    if not glob.has_magic("/".join(parts)):
        return [path]
    found = sorted(file for file in _below(base, parts) if file.is_file())
    if not found:
        raise ValueError(f"paths has {pattern!r}, which matches no file ({path})")
    return found


def _below(base: Path, parts: list[str]) -> set[Path]:
    """What a glob matches; `**` goes into linked folders too, into each folder once, however many links lead there."""
    if "**" not in parts:
        return set(base.glob("/".join(parts)))
    place = parts.index("**")
    found: set[Path] = set()
    for start in base.glob("/".join(parts[:place])) if place else [base]:
        seen: set[str] = set()
        for folder, inner, _ in os.walk(start, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                inner.clear()
                continue
            seen.add(real)
            inner.sort()
            found |= _below(Path(folder), parts[place + 1 :] or ["*"])
    return found


def _text_file(path: Path) -> dict[str, str]:
    kind = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if kind.removeprefix(".") not in FORMATS or (kind == ".parquet" and path.suffix in COMPRESSIONS):
        raise ValueError(f"paths has {str(path)!r}; a file must end in .jsonl or .txt (plus .gz or .zst, if any), or in .parquet")
    try:
        return {"path": str(path), "format": kind.removeprefix("."), "sha256": file_digest(path)}
    except OSError as error:
        raise ValueError(f"paths has {str(path)!r}, which cannot be read: {error.strerror}") from error


class HubSource(_Documents):
    """A dataset on the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    dataset: str = Field(min_length=1, description="its name, e.g. Salesforce/wikitext")
    subset: str | None = Field(None, description="its configuration, e.g. wikitext-103-raw-v1")
    split: str = Field("train", description="or a slice of it: train[:1%]")
    revision: str | None = Field(None, description="commit or tag; default: the hub's latest")
    column: str = Field("text", min_length=1)
    documents: int | None = identity_since(None, ge=1, description="stream this many and fetch no more; default: the whole split")

    @model_validator(mode="after")
    def _streams_whole_splits(self) -> HubSource:
        if self.documents is not None and "[" in self.split:
            raise ValueError(
                f"split is {self.split!r}, but streams (documents) take whole splits only; give split: {self.split.partition('[')[0]}"
            )
        return self


class StdlibSource(_Documents):
    """The running Python's standard library, docstrings included and tests excluded: text that is always there."""

    kind: Literal["stdlib"] = "stdlib"
    python: str = Field("", description="filled in")
    sha256: str = Field("", description="filled in, of all modules")

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
    """Byte-level BPE, trained on the corpus: it encodes any text."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(ge=258, description="tokens, including the 256 bytes, end-of-text and padding")
    train_characters: int = Field(10_000_000, ge=1, description="of training text, from each source by weight")


class PretrainedTokenizer(Config):
    """An existing tokenizer, from the hub or a local folder. A folder is identified by its tokenizer files, not its path."""

    kind: Literal["pretrained"] = "pretrained"
    hub: str | None = Field(None, description="name on the hub, e.g. Qwen/Qwen3-0.6B-Base")
    revision: str | None = Field(None, description="commit or tag on the hub; default: the latest")
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
            raise ValueError(f"folder is {data['folder']!r}, which holds no tokenizer.json or other tokenizer files ({folder})")
        return data | {"folder": str(folder), "sha256": digest}

    @model_validator(mode="after")
    def _one_place(self) -> PretrainedTokenizer:
        if (self.hub is None) == (self.folder is None):
            raise ValueError(f"hub is {self.hub!r} and folder {self.folder!r}; give exactly one of the two (and null for the other)")
        return self


def tokenizer_digest(folder: Path) -> str | None:
    """sha256 over a folder's tokenizer files; None if it has none."""
    found = [(name, file_digest(folder / name)) for name in TOKENIZER_FILES if (folder / name).is_file()]
    return digest_of_digests(found) if found else None


AnyTokenizer = Annotated[CharacterTokenizer | BPETokenizer | PretrainedTokenizer, Field(discriminator="kind")]


class CorpusConfig(Config):
    """Text, tokenized and packed into equal blocks. Without `sources`, it comes from the task, counted in documents."""

    name: str = execution("corpus")
    documents: int | None = identity_since(None, ge=1, description="from the task, if there are no sources")
    heldout_documents: int | None = identity_since(None, ge=1, description="from problems no training document uses")
    tokens: int | None = identity_since(None, ge=1, description="over all sources, in whole blocks")
    heldout_tokens: int | None = identity_since(None, ge=1, description="from documents not trained on, in the same shares")
    block_size: int = Field(ge=2, description="tokens per training sequence")
    seed: int = Field(0, ge=0)
    sources: dict[str, AnySource] = identity_since({}, description="by names you choose")
    tokenizer: AnyTokenizer = identity_since(CharacterTokenizer())
    heldout_share: float = identity_since(0.01, gt=0, lt=1, description="of documents from files, hub and stdlib, chosen by hash")
    max_bad_share: float = execution(0.01, ge=0, le=1, description="the stage stops if a larger share of a source is unreadable")
    num_proc: int = execution(1, ge=1, description="processes that tokenize")

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
                f"{' and '.join(sorted(given)) or 'no size'} given{' with sources' if self.sources else ''}; set {allowed}, and "
                "nothing else (null unsets a size)"
            )
        return self

    @model_validator(mode="after")
    def _every_source_has_a_block(self) -> CorpusConfig:
        if self.sources and not any(source.weight for source in self.sources.values()):
            raise ValueError("sources: all weights are 0; give at least one a positive weight")
        for key, size in (("tokens", self.tokens), ("heldout_tokens", self.heldout_tokens)):
            without = [name for name, blocks in ({} if size is None else self.shares(size)).items() if blocks == 0]
            if without:
                raise ValueError(
                    f"{key} is {size}: in blocks of {self.block_size} none is left for {', '.join(without)}; raise {key} or the weight"
                )
        return self

    @property
    def used_sources(self) -> dict[str, AnySource]:
        """Sources with positive weight, sorted by name."""
        if not self.sources:
            return {"task": TaskSource()}
        return {name: self.sources[name] for name in sorted(self.sources) if self.sources[name].weight > 0}

    def shares(self, tokens: int) -> dict[str, int]:
        """Blocks per source, in proportion to weight, rounded so that they add up (largest remainders first)."""
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
        """Whether the text depends on the recipe's task."""
        return self.tokenizer.kind == "characters" or any(source.kind == "task" for source in self.used_sources.values())

    @property
    def reads_hub(self) -> bool:
        """Whether it needs the Hugging Face hub beyond what the task needs."""
        from_hub = any(source.kind == "hub" for source in self.used_sources.values())
        return from_hub or (isinstance(self.tokenizer, PretrainedTokenizer) and self.tokenizer.hub is not None)

    def identity(self) -> dict[str, Any]:
        """Weights become shares; sources with weight 0 are left out."""
        kept = super().identity()
        if self.sources:
            whole = sum(source.weight for source in self.used_sources.values())
            kept["sources"] = {
                name: source.identity() | {"weight": source.weight / whole} for name, source in self.used_sources.items()
            }
        return kept
