"""A pinned base in memory: verified, frozen, quiet, on its device, in its precision, 4-bit where asked."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from petl_ray.errors import BaseModelError, CapacityError, CorruptionError
from petl_ray.models.device import DTYPES, choose_attention, choose_device, keep_few_kernels
from petl_ray.models.faults import is_device_fault, is_out_of_memory
from petl_ray.models.nf4 import nf4_config, parameter_count, self_test, settle
from petl_ray.models.sources import check_directory, directory_digest, locate, tokenizer_digest
from petl_ray.models.spec import LockedBase, TaskType


@dataclass
class LoadedBase:
    """A frozen base model in this process. `parameters` counts the base alone, without a classification head."""

    base: LockedBase
    task_type: TaskType
    model: Any
    tokenizer: Any
    tokenizer_digest: str
    parameters: int
    device: torch.device
    compute_dtype: torch.dtype
    pad_id: int

    @property
    def digest(self) -> str:
        """The digest of the pinned base."""
        return self.base.pinned.digest

    @property
    def size_bytes(self) -> int:
        """Bytes of the model's parameters and buffers as they lie in memory."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def weights_digest(self) -> str:
        """sha256 (hex) over the bytes of every weight in memory: equal before and after, or something wrote to it."""
        digest = hashlib.sha256()
        for name, tensor in sorted([*self.model.named_parameters(), *self.model.named_buffers()]):
            digest.update(name.encode())
            for part in _raw(tensor):
                digest.update(part.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_base(base: LockedBase, task_type: TaskType, device: str = "auto") -> LoadedBase:
    """Load a pinned base, frozen and in evaluation mode (its own dropout stays off: slots must not disturb each other).

    Classification bases carry a head that is only a pattern: every slot brings its own. Raises CorruptionError if the
    bytes are not the pinned ones, BaseModelError if weights other than the head's are missing or NF4 does not hold,
    CapacityError where memory runs out. A device that is broken is raised as it came.
    """
    directory = locate(base.pinned)
    check_directory(directory, base.pinned.uri)
    if (found := directory_digest(directory)) != base.pinned.digest:
        raise CorruptionError(
            base.pinned.uri,
            f"its files have digest {found[:12]}",
            f"the plan was locked with {base.pinned.digest[:12]}",
            "Restore the files or lock the plan again",
        )
    keep_few_kernels()
    where = choose_device(device)
    with _quiet():
        model = _load_model(base, task_type, directory, where)
        tokenizer = _load_tokenizer(directory, base.pinned.uri)
    model.requires_grad_(False).eval()
    model.config.use_cache = False
    pad_id = tokenizer.pad_token_id
    model.config.pad_token_id = pad_id
    if base.quantization == "nf4":
        self_test(model, where, base.pinned.uri)
    head = _head_names(model) if task_type == "classification" else []
    return LoadedBase(
        base=base,
        task_type=task_type,
        model=model,
        tokenizer=tokenizer,
        tokenizer_digest=tokenizer_digest(directory),
        parameters=parameter_count(model, without=head),
        device=where,
        compute_dtype=DTYPES[base.precision],
        pad_id=int(pad_id),
    )


def load_skeleton(base: LockedBase, task_type: TaskType, device: str = "cpu") -> Any:
    """The model's structure without weights (meta device): enough to count an adapter's parameters, free of charge. Its
    attention is the one that it would have on `device`."""
    directory = locate(base.pinned)
    check_directory(directory, base.pinned.uri)
    return _skeleton(directory, task_type, choose_attention(torch.device(device), base.precision))


def _skeleton(directory: Path, task_type: TaskType, attention: str | None = None) -> Any:
    from transformers import AutoConfig

    with _quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        if task_type == "classification":
            config.num_labels = 2
        options = {"attn_implementation": attention} if attention else {}
        return _auto_class(task_type).from_config(config, **options)


def _load_model(base: LockedBase, task_type: TaskType, directory: Path, device: torch.device) -> Any:
    options: dict[str, Any] = {"dtype": DTYPES[base.precision]}
    if attention := choose_attention(device, base.precision):
        options["attn_implementation"] = attention
    if task_type == "classification":
        options |= {"num_labels": 2, "ignore_mismatched_sizes": True}
    head = _head_names(_skeleton(directory, task_type)) if task_type == "classification" else []
    if base.quantization == "nf4":
        options["quantization_config"] = nf4_config(DTYPES[base.precision], head or ["lm_head"])
        options["device_map"] = {"": str(device)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # parts of a head that the checkpoint lacks begin the same in every process
        try:
            model, report = _auto_class(task_type).from_pretrained(
                directory,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, MemoryError) as error:
            if is_out_of_memory(error):
                raise _no_room(base, error) from error
            if is_device_fault(error):
                raise
            raise BaseModelError(base.pinned.uri, "cannot be loaded", _first_line(error)) from error
    _refuse_missing(report, head, base.pinned.uri, task_type)
    if base.quantization == "nf4":
        settle(model)
        return model
    try:
        return model.to(device)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _no_room(base, error) from error
        raise


def _no_room(base: LockedBase, error: Exception) -> CapacityError:
    do = "Quantize it, or load it where there is more memory"
    return CapacityError(base.pinned.uri, "memory ran out as it was loaded", _first_line(error), do)


def _auto_class(task_type: TaskType) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if task_type == "classification" else AutoModelForCausalLM


def _load_tokenizer(directory: Path, source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BaseModelError(source, "its tokenizer cannot be loaded", _first_line(error)) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise BaseModelError(source, "its tokenizer has no padding token and no end token", "batches need one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _refuse_missing(report: Any, head: list[str], source: str, task_type: TaskType) -> None:
    """A frozen weight that the checkpoint lacks would be random noise in every answer."""
    missing = sorted(key for key in report["missing_keys"] if key.split(".")[0] not in head)
    missing += sorted(str(entry[0]) for entry in report["mismatched_keys"] if str(entry[0]).split(".")[0] not in head)
    if missing:
        raise BaseModelError(
            source,
            f"weights are missing for {task_type}: {', '.join(missing[:3])}",
            "they would be random, and they are frozen",
            "Choose a checkpoint that carries them",
        )


def _head_names(model: Any) -> list[str]:
    """The model's own children beside the backbone: what turns hidden states into class scores."""
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]


def _raw(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    yield tensor.data
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield state.absmax
        if state.offset is not None:
            yield state.offset.reshape(1)
        state = state.state2


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' reports and progress bars, and bitsandbytes' import warning, out of sight."""
    from transformers.utils import logging as chatter

    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    bnb = logging.getLogger("bitsandbytes")
    level = bnb.level
    chatter.set_verbosity(logging.CRITICAL)
    chatter.disable_progress_bar()
    bnb.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(verbosity)
        bnb.setLevel(level)
        if bars:
            chatter.enable_progress_bar()
