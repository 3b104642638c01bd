"""train and train_all: what they write, that it is reproducible, resumed bit for bit, and good enough to serve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from petl_ray.artifact import Adapter, Dataset, parse_artifact
from petl_ray.bank import Bank, ServingBank
from petl_ray.errors import DataError, PetlRayError, RunCancelled, TemporaryError, TrainingError
from petl_ray.methods import read_adapter
from petl_ray.models import BaseSpec, LockedBase, load_base, resolve
from petl_ray.training import TrainSpec, train
from petl_ray.training.checkpoint import read_checkpoint, write_checkpoint
from petl_ray.training.session import open_session
from petl_ray.training.train import FILES
from petl_ray.verb import Question
from tests.plainstep import PlainStep
from tests.training.questions import dataset, locked, recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def moods(root: Path) -> Dataset:
    return dataset(PlainStep(root))


def _step(root: Path, name: str) -> PlainStep:
    return PlainStep(root, name=name)


class Stopping(PlainStep):
    """A step that is cancelled right after its n-th checkpoint."""

    def __init__(self, root: Path, name: str, after: int) -> None:
        super().__init__(root, name=name)
        self.left = after

    def save_progress(self, directory: Path, note: Any) -> None:
        super().save_progress(directory, note)
        self.left -= 1
        if self.left == 0:
            raise RunCancelled(self.name)


def test_an_adapter_has_its_files_its_figures_and_its_curve(base: LockedBase, root: Path, moods: Dataset) -> None:
    step = _step(root, "figures")
    adapter = train(recipe(base), moods, step=step)
    assert isinstance(adapter, Adapter)
    assert tuple(entry.path for entry in adapter.files) == FILES
    assert adapter.labels == moods.labels and adapter.task == "moods" and adapter.method == "lora"
    weights = load_file(step.fetch(adapter) / FILES[0])
    assert adapter.trained_parameters == sum(tensor.numel() for tensor in weights.values())
    history = [json.loads(line) for line in (step.fetch(adapter) / "history.jsonl").read_text().splitlines()]
    scores = [point["score"] for point in history if "score" in point]
    assert len(scores) == 4 and adapter.validation_score == max(scores)
    assert adapter.about["steps"] == 24 and adapter.about["tokens"] > 0
    assert [event for event, _ in step.events].count("train.validated") == 4
    assert parse_artifact(adapter.model_dump(mode="json")).digest == adapter.digest


@pytest.mark.parametrize(("method", "rate"), [("lora", 2e-3), ("bottleneck", 2e-3), ("head", 2e-2)])
def test_every_method_learns_its_rows(minilm: str, root: Path, method: str, rate: float) -> None:
    step = _step(root, f"learn-{method}")
    spec = recipe(
        resolve(BaseSpec(source=minilm, precision="fp32")), method={"kind": method}, epochs=12, learning_rate=rate
    )
    adapter = train(spec, dataset(step, rows=24), step=step)
    points = [json.loads(line) for line in (step.fetch(adapter) / "history.jsonl").read_text().splitlines()]
    losses = [point["train_loss"] for point in points if "train_loss" in point]
    assert sum(losses[-6:]) < 0.75 * sum(losses[:6])


def test_fp16_goes_the_way_of_fp32(tiny_bert: Path, root: Path) -> None:
    """Its smallest numbers are larger than many gradients; they are carried through the base on a scaled loss."""
    curves: dict[str, list[list[float]]] = {}
    for precision in ("fp32", "fp16"):
        step = _step(root, precision)
        spec = recipe(locked(tiny_bert, precision), epochs=6, learning_rate=0.01)
        adapter = train(spec, dataset(step, rows=48), step=step)
        points = [json.loads(line) for line in (step.fetch(adapter) / "history.jsonl").read_text().splitlines()]
        curves[precision] = [[point["train_loss"], point["gradient_norm"]] for point in points if "train_loss" in point]
    for half, full in zip(curves["fp16"], curves["fp32"], strict=True):
        assert half == pytest.approx(full, rel=0.05)


def test_equal_questions_give_equal_digests_and_other_seeds_others(
    base: LockedBase, root: Path, moods: Dataset
) -> None:
    first = train(recipe(base), moods, step=_step(root, "first"))
    second = train(recipe(base, checkpoint_every_s=1e-6), moods, step=_step(root, "second"))
    other = train(recipe(base, seed=1), moods, step=_step(root, "other"))
    assert first.digest == second.digest != other.digest


@pytest.mark.parametrize("method", [{"kind": "lora", "dropout": 0.1}, {"kind": "bottleneck"}])
def test_a_cancelled_training_continues_to_the_same_bits(
    base: LockedBase, root: Path, moods: Dataset, method: dict[str, Any]
) -> None:
    spec = recipe(base, method=method, checkpoint_every_s=1e-6)
    whole = train(spec, moods, step=_step(root, f"whole-{method['kind']}"))
    name = f"parts-{method['kind']}"
    for after in (1, 6, 7):  # in the first epoch, at a validation, in the second epoch
        with pytest.raises(RunCancelled):
            train(spec, moods, step=Stopping(root, name, after))
    resumed = _step(root, name)
    progress = resumed.load_progress()
    assert progress is not None and progress.note == {"step": 14, "steps": 24}
    assert train(spec, moods, step=resumed).digest == whole.digest


def test_a_killed_process_loses_only_what_was_not_saved(
    base: LockedBase, root: Path, moods: Dataset, tiny_bert: Path
) -> None:
    spec = recipe(base, method={"kind": "lora", "dropout": 0.1}, checkpoint_every_s=1e-6)
    whole = train(spec, moods, step=_step(root, "unkilled"))
    script = """
        import json, os, signal, sys
        from pathlib import Path
        from petl_ray.artifact import parse_artifact
        from petl_ray.training import TrainSpec, train
        from tests.plainstep import PlainStep
        class Killed(PlainStep):
            def save_progress(self, directory, note):
                super().save_progress(directory, note)
                if note["step"] == 9:
                    os.kill(os.getpid(), signal.SIGKILL)
        spec = TrainSpec.model_validate_json(sys.argv[2])
        train(spec, parse_artifact(json.loads(sys.argv[3])), step=Killed(Path(sys.argv[1]), name="killed"))
    """
    arguments = [str(root), spec.model_dump_json(), moods.model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True, timeout=120, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    step = _step(root, "killed")
    progress = step.load_progress()
    assert progress is not None and progress.note["step"] == 9
    assert train(spec, moods, step=step).digest == whole.digest


def test_a_broken_checkpoint_costs_its_work_and_not_the_step(base: LockedBase, root: Path, moods: Dataset) -> None:
    spec = recipe(base, checkpoint_every_s=1e-6)
    with pytest.raises(RunCancelled):
        train(spec, moods, step=Stopping(root, "torn", 5))
    step = _step(root, "torn")
    progress = step.load_progress()
    assert progress is not None
    (progress.directory / "checkpoint.safetensors").write_bytes(b"torn")
    assert train(spec, moods, step=step).digest == train(spec, moods, step=_step(root, "untorn")).digest


def test_a_device_that_fails_is_nobodys_fault_and_what_was_trained_goes_on_elsewhere(
    base: LockedBase, root: Path, moods: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, forward, left = recipe(base, checkpoint_every_s=1e-6), Bank.forward, 9

    def failing(*asked: Any, **how: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return forward(*asked, **how)

    steps = [_step(root, "lost-0"), _step(root, "lost-1")]
    questions = [Question(name, spec, (moods,)) for name in ("a", "b")]
    with monkeypatch.context() as here:
        here.setattr(Bank, "forward", failing)
        with pytest.raises(TemporaryError, match="the device failed: CUDA error"):
            dict(train.answer_all(questions, steps))
    progress = steps[0].load_progress()
    assert progress is not None and 0 < progress.note["step"] < progress.note["steps"]
    answers, alone = dict(train.answer_all(questions, steps)), train(spec, moods, step=_step(root, "kept"))
    assert [answer.digest for answer in answers.values() if isinstance(answer, Adapter)] == [alone.digest] * 2


def test_golden_answers_are_what_serving_gives(base: LockedBase, root: Path, moods: Dataset) -> None:
    step = _step(root, "golden")
    files = step.fetch(train(recipe(base), moods, step=step))
    golden = load_file(files / "golden.safetensors")
    loaded = load_base(base, "classification")
    serving = ServingBank(loaded, slots=3)
    serving.install(2, read_adapter(files, loaded))
    answers = torch.stack(serving.answer([2] * 4, golden["input_ids"], golden["attention_mask"]))
    assert answers.shape == golden["logits"].shape == (4, 3)
    assert torch.allclose(answers, golden["logits"], atol=1e-5)
    assert golden["logits"].std() > 0


def test_peft_gives_the_golden_answers_too(base: LockedBase, root: Path, moods: Dataset, tiny_bert: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    step = _step(root, "peft")
    files = step.fetch(train(recipe(base), moods, step=step))
    golden = load_file(files / "golden.safetensors")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    model = PeftModel.from_pretrained(model, files).eval()
    with torch.no_grad():
        logits = model(input_ids=golden["input_ids"], attention_mask=golden["attention_mask"]).logits
    assert torch.allclose(logits, golden["logits"], atol=1e-5)


def test_one_failing_question_leaves_its_neighbours_their_own_bits(
    base: LockedBase, root: Path, moods: Dataset
) -> None:
    """One is refused before it trains, one diverges in the first pass that it takes part in."""
    steps = [_step(root, f"pack-{index}") for index in range(4)]
    wrong, sick = dataset(steps[1], causal=True), recipe(base, seed=1)
    leave_a_sick_checkpoint(steps[2], sick, moods)
    questions = [
        Question("a", recipe(base), (moods,)),
        Question("b", recipe(base), (wrong,)),
        Question("c", sick, (moods,)),
        Question("d", recipe(base, method={"kind": "head"}), (moods,)),
    ]
    answers = dict(train.answer_all(questions, steps))
    assert isinstance(answers[1], DataError)
    assert isinstance(answers[2], TrainingError) and "not finite at step 0 of 24" in str(answers[2])
    alone = train(recipe(base), moods, step=_step(root, "alone"))
    assert isinstance(answers[0], Adapter) and answers[0].digest == alone.digest
    head = train(recipe(base, method={"kind": "head"}), moods, step=_step(root, "alone-head"))
    assert isinstance(answers[3], Adapter) and answers[3].digest == head.digest


def test_a_base_that_is_gone_fails_its_own_questions_only(
    base: LockedBase, root: Path, moods: Dataset, tmp_path: Path
) -> None:
    gone = base.model_copy(update={"pinned": base.pinned.model_copy(update={"uri": str(tmp_path / "nowhere")})})
    gone = gone.model_copy(update={"pinned": gone.pinned.model_copy(update={"digest": "f" * 64})})
    steps = [_step(root, "gone-0"), _step(root, "gone-1")]
    questions = [Question("gone", recipe(gone), (moods,)), Question("there", recipe(base), (moods,))]
    answers = dict(train.answer_all(questions, steps))
    assert isinstance(answers[0], PetlRayError) and "nowhere" in str(answers[0])
    assert isinstance(answers[1], Adapter)


def leave_a_sick_checkpoint(step: PlainStep, spec: TrainSpec, moods: Dataset) -> None:
    """Whoever continues from it diverges at once: some of its weights are no numbers."""
    session = open_session(spec, 1, 1)
    session.admit("moods", spec, step.fetch(moods))
    session.save("moods", step.out / "c")
    session.close()
    tensors, facts = read_checkpoint(step.out / "c")
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name].fill_(float("nan"))
    write_checkpoint(step.out / "c", tensors, facts)
    step.save_progress(step.out / "c", {"step": 0})


def test_divergence_is_an_error_that_names_the_rate(base: LockedBase, root: Path, moods: Dataset) -> None:
    step = _step(root, "sick")
    leave_a_sick_checkpoint(step, recipe(base), moods)
    with pytest.raises(TrainingError, match=r"learning rate 0\.005 may be too high"):
        train(recipe(base), moods, step=step)


def test_a_language_model_learns_to_complete(tiny_llama: Path, root: Path) -> None:
    step = _step(root, "turn")
    spec = recipe(
        locked(tiny_llama), task_type="causal_lm", metric="accuracy", epochs=30, learning_rate=5e-3,
        method={"kind": "lora", "rank": 16, "alpha": 32}, template="now {prompt}",
    )  # fmt: skip
    adapter = train(spec, dataset(step, task="turn", causal=True), step=step)
    assert isinstance(adapter, Adapter) and adapter.validation_score is not None
    assert adapter.validation_score > 0.8
    card = json.loads((step.fetch(adapter) / "card.json").read_text())
    assert card["template"] == "now {prompt}"
    assert load_file(step.fetch(adapter) / "golden.safetensors")["logits"].dim() == 2


def test_a_real_language_model_gets_better(stories_llama: Path, root: Path) -> None:
    step = _step(root, "stories")
    spec = recipe(locked(stories_llama), task_type="causal_lm", metric="loss", epochs=10, batch_size=16, max_length=64)
    adapter = train(spec, dataset(step, task="turn", causal=True), step=step)
    points = [json.loads(line) for line in (step.fetch(adapter) / "history.jsonl").read_text().splitlines()]
    losses = [point["validation_loss"] for point in points if "validation_loss" in point]
    assert losses[-1] < 0.5 * points[0]["train_loss"]


def test_minilm_tells_moods_apart_with_a_small_adapter(minilm: str, root: Path) -> None:
    step = _step(root, "minilm")
    base = resolve(BaseSpec(source=minilm, precision="fp32"))
    adapter = train(recipe(base, learning_rate=2e-3, epochs=4), dataset(step, rows=128), step=step)
    assert isinstance(adapter, Adapter) and adapter.validation_score is not None
    assert adapter.validation_score >= 0.9
    assert adapter.trained_parameters / adapter.base_parameters <= 0.02
    assert adapter.size_bytes <= 0.02 * 4 * adapter.base_parameters
