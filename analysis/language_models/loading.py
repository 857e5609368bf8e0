"""A language model from a folder, a GGUF file or a hub, without running its code or reading pickles; its origin."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kernel.extras import pip_install

from .gguf_files import quick_reader, read_facts
from .tokenizer_check import check_tokenizer

__all__ = ["LoadedModel", "load_model"]

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
_ADAPTER = "adapter_config.json"  # of PEFT; transformers attaches it where PEFT is installed, else not


class LoadedModel(NamedTuple):
    """A model with its tokenizer and where both come from.

    Attributes:
        model: The causal language model in evaluation mode.
        tokenizer: Its tokenizer; None where none was asked for.
        name: File, folder or hub name.
        revision: Commit of the hub, or ``sha256:`` and the first 16 digits of the weights' hash.
        quantisation: How the weights were stored: ``"Q4_1, dequantised"``, ``"none (bfloat16)"``.
        licence: As the file or the model card says; ``"not stated"`` where neither does.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str
    quantisation: str
    licence: str


def load_model(
    name: str | Path, *, revision: str | None = None, dtype: torch.dtype = torch.float32, with_tokenizer: bool = True
) -> LoadedModel:
    """Load safetensors or a GGUF file. The network is used only where ``name`` is no file or folder of this machine.

    A GGUF file is dequantised to ``dtype``: its numbers are those of the quantised model, not of the one it came from.
    Its tokenizer is rebuilt by transformers, not every version of which does it rightly, and checked against the file's
    own pieces (:func:`~analysis.language_models.tokenizer_check.check_tokenizer`).
    On the hub, a branch or tag is resolved to its commit once, and weights, tokenizer and licence are read from that
    commit. A model without safetensors is refused; the hub's service that would convert its pickles is not asked. So
    is an adapter, with or without the weights of its base: what it changes would depend on whether PEFT is installed.

    Args:
        name: Folder, GGUF file, or ``"owner/name"`` on the Hugging Face hub.
        revision: Branch, tag or commit on the hub; None for its default, or for a local model.
        dtype: Of the weights in memory.
        with_tokenizer: False for whoever brings token ids.

    Returns:
        The model, on the CPU.

    Raises:
        ImportError: If transformers is missing, or gguf for a GGUF file.
        OSError: If there is no such model or revision, it has neither safetensors nor is a GGUF file, it is an adapter,
            weights are missing, of another shape than the config says, or cannot be read, or the tokenizer that
            transformers made of a GGUF file cuts text otherwise than the file says.
        ValueError: If ``revision`` is given for a local model.
    """
    try:
        from transformers import (  # pyright: ignore[reportMissingImports]
            AutoModelForCausalLM,
            AutoTokenizer,
            __version__,
        )
    except ImportError as error:
        raise ImportError(f"a model needs transformers: {pip_install('real')}") from error
    path = Path(name)
    local = path.exists()
    if not local and (isinstance(name, Path) or not _HUB_NAME.fullmatch(name) or path.suffix in (".gguf", ".bin")):
        raise FileNotFoundError(f"model must be a folder, a GGUF file or a hub's owner/name, got {name}: no such file.")
    if local and revision is not None:
        raise ValueError(f"revision must be None for a local model, got {revision!r} with {name}.")
    if path.is_file() and path.suffix != ".gguf":
        raise OSError(f"model must be a folder of safetensors or a GGUF file, got the file {name}.")
    if path.is_dir():
        _check_folder(path)
    where: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    folder: str | Path = name
    facts = read_facts(path) if path.is_file() else None
    if facts is not None:
        folder, where = path.parent, {**where, "gguf_file": path.name}
    if not local:  # a branch may move between two files: its commit, once, and everything from there
        where["revision"] = _commit(str(name), revision)
    _refuse_adapters(folder, where.get("revision"))
    with _no_conversion(), _errors_of(name), nullcontext() if facts is None else quick_reader():
        tokenizer = AutoTokenizer.from_pretrained(folder, **where) if with_tokenizer else None
        if facts is not None and tokenizer is not None:
            check_tokenizer(tokenizer, facts, path.name, __version__)
        # use_safetensors refuses a folder that has pickles only; a GGUF file is none of both
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=not path.is_file(), output_loading_info=True,
            ignore_mismatched_sizes=True, **where,
        )  # fmt: skip
    model, info = loaded
    _check_complete(name, info)
    if facts is not None:
        licence = str(facts.fields.get("general.license", "not stated"))
        return LoadedModel(model.eval(), tokenizer, path.name, _hash([path]), facts.quantisation, licence)
    stored = getattr(model.config, "quantization_config", None)
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    quantisation = f"none ({str(dtype).removeprefix('torch.')})" if method is None else str(method)
    if local:
        name, origin, licence = path.name, _hash(sorted(path.glob("*.safetensors"))), _from_card(path / "README.md")
    else:
        origin, licence = where["revision"], _licence(str(name), where["revision"])
    return LoadedModel(model.eval(), tokenizer, str(name), origin, quantisation, licence)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds no model at all, of which transformers would ask for more packages.

    Raises:
        OSError: If it is empty or has no config, with what to give instead.
    """
    names = sorted(path.name for path in folder.iterdir())
    if "config.json" in names or _ADAPTER in names:
        return
    packed = [name for name in names if name.endswith(".gguf")]
    instead = f"; give the file itself, {folder / packed[0]}" if packed else ""
    holds = f"holds no config.json{instead}" if names else "is empty"
    raise OSError(f"model must be a folder with a config.json and safetensors, got {folder}, which {holds}.")


def _refuse_adapters(folder: str | Path, commit: str | None) -> None:
    """Refuse a folder, or a hub's model at a commit, that holds an adapter; a GGUF file's folder would lend it its own.

    Raises:
        OSError: If there is one.
    """
    if commit is None:
        found = (Path(folder) / _ADAPTER).exists()
    else:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]
        from huggingface_hub.errors import EntryNotFoundError  # pyright: ignore[reportMissingImports]

        try:
            found = bool(hf_hub_download(str(folder), _ADAPTER, revision=commit))
        except EntryNotFoundError:
            found = False
    if found:
        raise OSError(
            f"model must hold all its weights itself, got {folder} with an adapter ({_ADAPTER}). Merge it into its "
            "base first (PEFT's merge_and_unload, then save_pretrained); move a GGUF file that it is not for elsewhere."
        )


def _check_complete(name: str | Path, info: dict[str, Any]) -> None:
    """Refuse weights that transformers drew at random, as the file has none that fit; tied ones are not among them."""
    for why, keys in (("no", info["missing_keys"]), ("another shape of", info["mismatched_keys"])):
        if keys:
            names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise OSError(
                f"model must hold every weight that its config says, got {name} with {why} "
                f"{', '.join(names[:3])}{more}."
            )


@contextmanager
def _errors_of(name: str | Path) -> Iterator[None]:
    """Errors of many kinds (corrupt files, configs that fit nothing) as one that says which model they are of."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise OSError(f"model must be one that transformers can load, got {name}: {error or error!r}") from error


def _commit(name: str, revision: str | None) -> str:
    """Commit of a branch, tag or commit on the hub; without a network, of the copy kept from the last time."""
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]

    folder = Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    if not _COMMIT.fullmatch(folder):
        raise OSError(f"the hub must name a commit for {name} at revision {revision or 'main'}, got {folder!r}.")
    return folder


def _licence(name: str, commit: str) -> str:
    """As the model card of a commit says."""
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]

    try:
        return _from_card(Path(hf_hub_download(name, "README.md", revision=commit)))
    except OSError:
        return "not stated"


@contextmanager
def _no_conversion() -> Iterator[None]:
    """No request to the hub's service that makes safetensors of pickles; transformers reads this at each load."""
    before = os.environ.get(_CONVERSION)
    os.environ[_CONVERSION] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CONVERSION]
        else:
            os.environ[_CONVERSION] = before


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


def _from_card(card: Path) -> str:
    """``license`` of the header of a model card."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    header = re.match(r"---\n(.*?)\n---", text, re.S)
    found = re.search(r"^license: *(\S+)", header.group(1), re.M) if header else None
    return found.group(1) if found else "not stated"
