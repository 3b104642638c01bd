"""MLflow's door to a registered adapter: `mlflow.pyfunc.load_model("models:/NAME/VERSION")` ends here, without pickle.

Every file is checked against the manifest first; the base model is loaded from where the manifest says and must have
the digest it says. For trying a version out: traffic is served by the serving room.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petl_ray.artifact import Adapter
from petl_ray.errors import DataError
from petl_ray.registry.package import verified_adapter

_ROWS = 32  # rows of one forward pass


def _load_pyfunc(data_path: str) -> AdapterModel:
    """What MLflow calls. Raises AdapterError for changed files, BaseModelError for a base that is absent or changed."""
    directory = Path(data_path)
    return AdapterModel(verified_adapter(directory), directory / "adapter")


class AdapterModel:
    """A loaded classifier: texts in, the most probable label of each and its probability out."""

    def __init__(self, adapter: Adapter, directory: Path) -> None:
        from petl_ray.bank import ServingBank
        from petl_ray.methods import read_adapter
        from petl_ray.models import LockedBase, load_base
        from petl_ray.tasks import task_of

        if adapter.task_type != "classification":
            raise DataError(
                adapter.task, f"a {adapter.task_type} adapter", "this door answers with labels", "Serve it instead"
            )
        locked = LockedBase(pinned=adapter.base, precision=adapter.precision, quantization=adapter.quantization)
        self._task = task_of(adapter.task_type)
        self._loaded = load_base(locked, adapter.task_type)
        self._bank = ServingBank(self._loaded, slots=1)
        files = read_adapter(directory, self._loaded)
        self._bank.install(0, files)
        self._card = files.card

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """`{"label", "probability"}` of each text.

        `model_input` is a list of texts, or a data frame with a column `text` (and `text_pair`). Raises DataError for
        anything else.
        """
        rows = _rows(model_input)
        answers: list[dict[str, Any]] = []
        for start in range(0, len(rows), _ROWS):
            answers += self._answer(rows[start : start + _ROWS])
        return answers

    def _answer(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        encoded = self._task.encode(rows, self._loaded.tokenizer, self._card.max_length)
        batch = self._task.collate(encoded, self._loaded.pad_id)
        answers = []
        for logits in self._bank.answer([0] * len(rows), batch.input_ids, batch.attention_mask, batch.extra):
            chances = logits.float().softmax(-1)
            best = int(chances.argmax())
            answers.append({"label": self._card.labels[best], "probability": float(chances[best])})
        return answers


def _rows(model_input: Any) -> list[dict[str, Any]]:
    if hasattr(model_input, "to_dict"):
        rows = model_input.to_dict(orient="records")
    else:
        rows = [{"text": text} for text in ([model_input] if isinstance(model_input, str) else model_input)]
    if any(not isinstance(row.get("text"), str) for row in rows):
        raise DataError("model_input", "a row without text", "", "Give texts, or a data frame with a column `text`")
    return [dict(row) for row in rows]
