"""Measures the data that the project ships and holds it to its own rules: `python examples/check_data.py`.

The rules keep the tasks honest: a word count must not solve them, no row may stand nearly twice in a file (and so on
both sides of a split), and no single word may give a label away. Prints the figures; exits 1 if a rule is broken.
Another folder of data may be named as the only argument.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

CLASSIFICATION = ("support_tickets", "review_sentiment", "request_urgency")
COMPLETION = "invoice_lines"

MIN_ROWS = {**dict.fromkeys(CLASSIFICATION, 700), COMPLETION: 600}
MIN_LABELS = {"support_tickets": 8, "review_sentiment": 2, "request_urgency": 3}
MAX_IMBALANCE = 1.5  # rows of the largest label over rows of the smallest
MAX_BAG_OF_WORDS = 0.92  # accuracy on the test side, in every split
NEAR = 0.6  # Jaccard similarity of two word sets from which two rows count as near copies
SURE = 0.8  # precision from which a token points at one label
MAX_GIVEN_AWAY = 0.25  # part of a label's rows that one such token may cover
MIN_SUPPORT = 5  # rows a token must stand in to be judged
SPLITS = 5

_WORD = r"[^\W_]+"
_ANSWER = re.compile(r"(\d{4}-\d\d-\d\d) \| (0|[1-9]\d*)\.\d\d (EUR|USD|GBP|CHF|SEK|PLN)")


@dataclass
class Findings:
    """What was measured of one file (`lines`, for people) and which rules it breaks (`broken`)."""

    lines: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def say(self, line: str, broken: bool = False) -> None:
        """Add a figure; `broken` marks one that breaks a rule."""
        self.lines.append(f"  {line}{'   <-- BREAKS THE RULE' if broken else ''}")
        if broken:
            self.broken.append(line)


def check_classification(name: str, rows: Sequence[dict[str, str]]) -> Findings:
    """Figures of rows `{"text", "label"}`."""
    found = Findings()
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    sizes = Counter(labels)
    _sizes(found, name, rows, texts)
    balance = max(sizes.values()) / min(sizes.values())
    found.say(f"labels: {dict(sorted(sizes.items()))}", len(sizes) < MIN_LABELS[name] or balance > MAX_IMBALANCE)
    scores = [bag_of_words(texts, labels, seed) for seed in range(SPLITS)]
    shown = f"{np.mean(scores):.1%} mean, {max(scores):.1%} highest of {SPLITS} splits"
    found.say(f"bag of words, accuracy: {shown}", max(scores) > MAX_BAG_OF_WORDS)
    _nearness(found, texts)
    part, token, label, precision = giveaway(texts, labels)
    shown = f"{token!r} stands in {part:.0%} of {label}, precision {precision:.0%}" if token else "none"
    found.say(f"strongest token of precision >= {SURE:.0%}: {shown}", part >= MAX_GIVEN_AWAY)
    return found


def check_completion(name: str, rows: Sequence[dict[str, str]]) -> Findings:
    """Figures of rows `{"prompt", "completion"}`."""
    found = Findings()
    prompts = [row["prompt"] for row in rows]
    _sizes(found, name, rows, prompts)
    odd = [row["completion"] for row in rows if not _is_answer(row["completion"])]
    found.say(f"completions that are no date and amount: {len(odd)}{f', such as {odd[0]!r}' if odd else ''}", bool(odd))
    parts = [
        (row["prompt"], *re.split(r"[| ]+", row["completion"])[:2]) for row in rows if _is_answer(row["completion"])
    ]
    dates, amounts = (sum(part[at] in part[0] for part in parts) / max(len(parts), 1) for at in (1, 2))
    found.say(f"answers that stand in the line as they are: date {dates:.0%}, amount {amounts:.0%}")
    _nearness(found, prompts)
    return found


def bag_of_words(texts: Sequence[str], labels: Sequence[str], seed: int) -> float:
    """Test accuracy (0…1) of logistic regression on TF-IDF of words and word pairs, C chosen on the validation side.

    Sides by a hash of the text, 70 : 10 : 20; another `seed`, another split.
    """
    at = np.array([_position(text, seed) for text in texts])
    y = np.array(labels)
    train, validation, test = (at >= 0.2) & (at < 0.9), at >= 0.9, at < 0.2
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD)
    x_train = vectorizer.fit_transform([text for text, inside in zip(texts, train, strict=True) if inside])
    x = vectorizer.transform(texts)
    models = [LogisticRegression(C=c, max_iter=1000).fit(x_train, y[train]) for c in (3, 10, 30, 100)]
    best = max(models, key=lambda model: float(model.score(x[validation], y[validation])))
    return float(best.score(x[test], y[test]))


def nearest(texts: Sequence[str]) -> tuple[float, int, int]:
    """The highest Jaccard similarity (0…1) of the word sets of two different rows, and the two row numbers."""
    words = _word_sets(texts)[0]
    shared = (words @ words.T).toarray().astype(float)
    sizes = np.asarray(words.sum(axis=1)).ravel()
    similarity = shared / np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)
    np.fill_diagonal(similarity, -1)
    first, second = np.unravel_index(int(similarity.argmax()), similarity.shape)
    return float(similarity[first, second]), int(first), int(second)


def giveaway(texts: Sequence[str], labels: Sequence[str]) -> tuple[float, str, str, float]:
    """The token that covers the largest part of a label's rows among those that point at one label.

    Returns that part (recall, 0…1), the token, the label and the token's precision; (0, "", "", 0) if no token points.
    """
    words, tokens = _word_sets(texts)
    y = np.array(labels)
    support = np.asarray(words.sum(axis=0)).ravel()
    best = (0.0, "", "", 0.0)
    for label in sorted(set(labels)):
        hits = np.asarray(words[y == label].sum(axis=0)).ravel()
        precision, recall = hits / support, hits / int((y == label).sum())
        recall[(precision < SURE) | (support < MIN_SUPPORT)] = 0
        top = int(recall.argmax())
        best = max(best, (float(recall[top]), str(tokens[top]), label, float(precision[top])))
    return best if best[0] > 0 else (0.0, "", "", 0.0)


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _sizes(found: Findings, name: str, rows: Sequence[dict[str, str]], texts: Sequence[str]) -> None:
    lengths = [len(text.split()) for text in texts]
    found.say(f"rows: {len(rows)} ({len(rows) - len(set(texts))} twice)", len(set(texts)) < MIN_ROWS[name])
    found.say(f"words a row: {min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}")


def _nearness(found: Findings, texts: Sequence[str]) -> None:
    similarity, first, second = nearest(texts)
    found.say(f"nearest pair, Jaccard of all pairs: {similarity:.2f}", similarity >= NEAR)
    found.lines += [f"    {texts[first]}", f"    {texts[second]}"]


def _word_sets(texts: Iterable[str]) -> tuple[Any, Sequence[str]]:
    """A sparse 0/1 matrix (rows × words), and the words."""
    vectorizer = CountVectorizer(binary=True, token_pattern=_WORD)
    return vectorizer.fit_transform(texts), vectorizer.get_feature_names_out()


def _position(text: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:6], "big") / 2.0**48


def _is_answer(completion: str) -> bool:
    match = _ANSWER.fullmatch(completion)
    try:
        return bool(match) and bool(date.fromisoformat(completion[:10]))
    except ValueError:
        return False


def main(folder: Path) -> int:
    """Check every file of `folder`; 0 if all rules hold, else 1."""
    broken = 0
    for name in (*CLASSIFICATION, COMPLETION):
        rows = read_jsonl(folder / f"{name}.jsonl")
        found = check_completion(name, rows) if name == COMPLETION else check_classification(name, rows)
        print(name, *found.lines, sep="\n")
        broken += len(found.broken)
    print(f"{broken} rules broken" if broken else "all rules hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"))
