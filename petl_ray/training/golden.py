"""Golden answers: a few validation rows and the logits the adapter must give for them, in the serving layout, alone.

`golden.safetensors` holds `input_ids` and `attention_mask` (int64 [rows, length], padded on the right; for pairs
`token_type_ids` too) and `logits` (fp32): [rows, labels] for classification, [rows, vocabulary] at each row's last real
token for causal language models. Every row was answered by itself, without padding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from petl_ray.bank import ServingBank
from petl_ray.methods import read_adapter
from petl_ray.models import LoadedBase
from petl_ray.training.rows import Rows

GOLDEN_ROWS = {"classification": 4, "causal_lm": 2}  # a language model's logits are as wide as its vocabulary
GOLDEN_FILE = "golden.safetensors"


def write_golden(loaded: LoadedBase, rows: Rows, directory: Path) -> None:
    """Write `golden.safetensors` beside the adapter files in `directory`, which are read as serving would read them.

    Raises AdapterError if they are not what serving accepts.
    """
    whole = rows.task.collate(rows.validation[: GOLDEN_ROWS[loaded.task_type]], loaded.pad_id)
    serving = ServingBank(loaded, slots=1)
    try:
        serving.install(0, read_adapter(directory, loaded))
        logits = [_alone(serving, loaded, rows, index) for index in range(len(whole.ids))]
    finally:
        serving.detach()
    tensors = {"input_ids": whole.input_ids, "attention_mask": whole.attention_mask, **whole.extra}
    save_file({**tensors, "logits": torch.stack(logits)}, directory / GOLDEN_FILE)


def _alone(serving: ServingBank, loaded: LoadedBase, rows: Rows, index: int) -> torch.Tensor:
    batch = rows.task.collate([rows.validation[index]], loaded.pad_id)
    ids, mask = batch.input_ids.to(loaded.device), batch.attention_mask.to(loaded.device)
    extra = {name: tensor.to(loaded.device) for name, tensor in batch.extra.items()}
    logits = serving.answer([0], ids, mask, extra or None)[0]
    last = logits[-1] if loaded.task_type == "causal_lm" else logits
    return last.detach().float().cpu().contiguous()
