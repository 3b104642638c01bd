"""One trial as most people write it: transformers' Trainer over a PEFT model, validated where the sweep wants it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.questions import BASE, Question, put_in
from benchmarks.rivals.models import base_model, encoded, label_count, tokenizer_of, with_lora

Told = Callable[[dict[str, Any]], None]


def train(
    question: Question, overrides: dict[str, Any], folder: Path, told: Told, source: str = BASE
) -> dict[str, float]:
    """Train one configuration to the end: `score` on the validation rows, and on the test rows where it is asked for.

    `told` hears `score`, `step` and `steps` at every rung; it may end the trial by raising.
    """
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

    recipe = put_in(question.recipe, overrides)
    tokenizer = tokenizer_of(source)
    sides = {side: encoded(folder, side, tokenizer, recipe["max_length"]) for side in ("train", "validation", "test")}
    model = with_lora(base_model(source, label_count(folder)), recipe["method"], question.seed)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=recipe["batch_size"],
            per_device_eval_batch_size=64,
            num_train_epochs=recipe["epochs"],
            learning_rate=recipe["learning_rate"],
            weight_decay=0.0,
            lr_scheduler_type="linear",
            warmup_steps=recipe["warmup_share"],
            max_grad_norm=recipe["gradient_clip"],
            bf16=question.mode == "autocast",
            seed=question.seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        heard = _rungs(question, told)
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=sides["train"],
            eval_dataset=sides["validation"],
            compute_metrics=_accuracy,
            callbacks=[heard],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        facts = {"score": heard.score, "steps": float(trainer.state.global_step)}
        if question.tested:
            facts["test"] = float(trainer.predict(sides["test"]).metrics["test_accuracy"])
    return facts


def _accuracy(outcome: Any) -> dict[str, float]:
    return {"accuracy": float((outcome.predictions.argmax(-1) == outcome.label_ids).mean())}


def _rungs(question: Question, told: Told) -> Any:
    """A callback that has the model evaluated at the rungs and tells what came of it."""
    from transformers import TrainerCallback

    class Rungs(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        score = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            steps = [max(1, round(share * state.max_steps)) for share in question.rungs]
            control.should_evaluate = state.global_step in steps

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **rest: Any) -> None:
            self.score = float(metrics["eval_accuracy"])
            told({"score": self.score, "step": state.global_step, "steps": state.max_steps})

    return Rungs()
