"""Answer questions from a context of any length.

Question and context become windows of tokens that overlap. The chance of a token to begin the answer is one
softmax over the context tokens of all windows together, and so for its end: one for each window would make
windows without the answer look certain. A span scores the product of both chances.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import UsageError
from hilm.extras import require
from hilm.inference.loading import longest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

WINDOW, STRIDE = 384, 128


class Answerer:
    """Answers with a model for QuestionAnswering."""

    def __init__(self, model: Any, tokenizer: Any) -> None:  # noqa: ANN401 - of transformers
        if not tokenizer.is_fast:
            raise UsageError(
                "question-answering needs a fast tokenizer", hint="choose a model with tokenizer.json"
            )
        self.model, self.tokenizer = model, tokenizer
        self.window = min(WINDOW, longest(model, tokenizer) or WINDOW)
        self.takes = set(signature(model.forward).parameters)

    def __call__(
        self,
        inputs: Sequence[dict[str, str]],
        batch_size: int,
        *,
        top_k: int = 1,
        max_answer_len: int = 15,
        no_answer: bool = False,
        score_scope: str = "all",
    ) -> list[Any]:
        """Answer ``{"question", "context"}``.

        Args:
            inputs: Questions.
            batch_size: Windows at a time.
            top_k: Answers to each; more than one come as a list.
            max_answer_len: Tokens of an answer.
            no_answer: Let the empty answer win.
            score_scope: ``window``: a softmax for each window, as the pipeline of transformers 4 had it.
        """
        if score_scope not in {"all", "window"}:
            raise UsageError(f"there is no score_scope {score_scope!r}", hint="all or window")
        windows = self._cut(inputs)
        logits = self._forward(windows, batch_size)
        owner = np.array(windows["overflow_to_sample_mapping"])
        answers = []
        for index, item in enumerate(inputs):
            mine = np.flatnonzero(owner == index)
            spans = np.array([windows["offset_mapping"][w] for w in mine])
            inside = np.array([[part == 1 for part in windows.sequence_ids(w)] for w in mine])
            if no_answer:
                inside[:, 0], spans[:, 0] = True, 0
            axis = (0, 1) if score_scope == "all" else 1
            starts, ends = (_softmax(side[mine], inside, axis) for side in logits)
            found = best_spans(starts, ends, spans, max_answer_len)[:top_k]
            named = [{"score": s, "start": a, "end": b, "answer": item["context"][a:b]} for s, a, b in found]
            answers.append(named if top_k > 1 else named[0])
        return answers

    def _cut(self, inputs: Sequence[dict[str, str]]) -> Any:  # noqa: ANN401 - a BatchEncoding
        questions = [item["question"] for item in inputs]
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        taken = [len(ids) for ids in self.tokenizer(questions, add_special_tokens=False)["input_ids"]]
        room = self.window - special - max(taken)
        if room < 3:
            raise UsageError(
                f"question {taken.index(max(taken))} has {max(taken)} tokens; a window takes {self.window}",
                hint="ask a shorter question",
            )
        return self.tokenizer(
            questions,
            [item["context"] for item in inputs],
            truncation="only_second",
            max_length=self.window,
            stride=min(STRIDE, room // 3),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding=True,
        )

    def _forward(self, windows: Any, batch_size: int) -> tuple[Floats, Floats]:  # noqa: ANN401 - a BatchEncoding
        torch = require("torch")
        sides: tuple[list[Any], list[Any]] = ([], [])
        fed = {name: windows[name] for name in windows if name in self.takes}
        for first in range(0, len(windows["input_ids"]), batch_size):
            batch = {
                name: torch.tensor(rows[first : first + batch_size]).to(self.model.device)
                for name, rows in fed.items()
            }
            with torch.inference_mode():
                out = self.model(**batch)
            for side, logits in zip(sides, (out.start_logits, out.end_logits), strict=True):
                side.append(logits.double().cpu().numpy())
        starts, ends = (np.concatenate(side) for side in sides)
        return starts, ends


def _softmax(logits: Floats, inside: NDArray[np.bool_], axis: int | tuple[int, int]) -> Floats:
    """Return chances of the positions inside; the others get 0."""
    kept = np.where(inside, logits, -np.inf)
    weights = np.exp(kept - kept.max(axis=axis, keepdims=True))
    chances: Floats = weights / weights.sum(axis=axis, keepdims=True)
    return chances


def best_spans(
    starts: Floats, ends: Floats, spans: NDArray[np.int64], longest_answer: int
) -> list[tuple[float, int, int]]:
    """Return every span of characters with its best score, the best first.

    Args:
        starts: Chance of each token to be the first, [windows, tokens].
        ends: To be the last, likewise.
        spans: First character and the one after the last of each token, [windows, tokens, 2].
        longest_answer: Tokens of a span.

    Returns:
        Score, first character, the one after the last; by falling score, then by place.
    """
    scores, first, last = [], [], []
    for extra in range(min(longest_answer, starts.shape[1])):
        tokens = starts.shape[1] - extra
        chances = starts[:, :tokens] * ends[:, extra:]
        scores.append(chances[chances > 0])
        first.append(spans[:, :tokens, 0][chances > 0])
        last.append(spans[:, extra:, 1][chances > 0])
    found = [np.concatenate(part) for part in (scores, first, last)]
    order = np.lexsort((found[2], found[1], -found[0]))
    places = np.stack([found[1], found[2]], axis=1)[order]
    best = np.sort(np.unique(places, axis=0, return_index=True)[1])
    return [(float(found[0][order][i]), int(places[i, 0]), int(places[i, 1])) for i in best]
