"""A model for lm-eval-harness (0.4.13): any mode and profile, log-likelihoods to the bit as `scalescope eval` has them.

    python -m scalescope.lm_eval --model_args model=path,mode=2-4,profile=deployed --tasks lambada_openai
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

import json

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from .._progress import Progress
from .._scalescope import Error, windows
from ..model import Model, load

#: Tokens that are generated between looks for a stop string.
_PIECE = 8


@register_model("scalescope")
class Scalescope(TemplateLM):  # type: ignore[misc, no-any-unimported]
    """A scalescope model in one mode and profile; a batch runs on all cores.

    `model`, `float`, `scales`, `recipe`, `tokenizer`, `modes_file` as `scalescope.load` takes them; `max_length`: longest
    input in tokens, of which the left end of longer ones is cut off.
    """

    def __init__(
        self,
        model: Any = "sample",
        mode: Any = "0",
        profile: Any = "exact",
        faults: Any = (),
        max_length: int = 2048,
        max_gen_toks: int = 256,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = model if isinstance(model, Model) else load(str(model), **options)
        # A command line reads the mode "1" as a number.
        mode = str(mode) if isinstance(mode, int) else mode
        self._settings = {"mode": mode, "profile": profile, "faults": faults}
        self._scorer = self.model.scorer(**self._settings)
        self._begin: Any = None
        self.max_length, self.max_gen_toks = int(max_length), int(max_gen_toks)
        self._prefix = self._find_prefix()

    def _find_prefix(self) -> Optional[int]:
        """The token before a text: as `scalescope eval` finds it."""
        config = json.loads(self.model._model.source_config) or {}
        for key in ("bos_token_id", "eos_token_id"):
            if isinstance(config.get(key), int) and config[key] >= 0:
                found = config[key]
                break
        else:
            ids = self.model.encode("<|endoftext|>")
            found = int(ids[0]) if len(ids) == 1 else None
        return found if found is not None and found < self.model.config["vocab_size"] else None

    @property
    def eot_token_id(self) -> int:
        """The token before a text and after it."""
        if self._prefix is None:
            raise Error("start token: expected bos_token_id or eos_token_id in config.json, found neither")
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: Optional[bool] = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; no special ones are added."""
        return [int(t) for t in self.model.encode(string)]

    def tok_decode(self, tokens: Any) -> str:
        """The text of token ids."""
        return self.model.decode_text(tokens)

    def _score(self, sequences: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        with Progress() as progress:
            return self._scorer.score(sequences, progress)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        sequences = []
        for _, context, continuation in requests:
            if not context or not continuation:
                raise Error("request: expected a context and a continuation of one token at least, found none")
            if len(continuation) > self.max_length:
                raise Error(f"continuation: expected at most {self.max_length} tokens, found {len(continuation)}")
            tokens = [*context, *continuation][-(self.max_length + 1) :]
            sequences.append((tokens, len(continuation)))
        scores = self._score(sequences)
        for (request, _, _), score in zip(requests, scores):
            if request is not None:
                self.cache_hook.add_partial("loglikelihood", request, score)
        return scores

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Sums over every token of each text, in windows of `max_length`."""
        sequences: list[tuple[list[int], int]] = []
        counts = []
        for request in requests:
            (text,) = request.args
            parts = windows(self.tok_encode(text), self.eot_token_id, self.max_length)
            sequences += parts
            counts.append(len(parts))
        scores = iter(self._score(sequences))
        sums = []
        for request, count in zip(requests, counts):
            total = 0.0
            for _ in range(count):
                total += next(scores)[0]
            sums.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to a stop string."""
        if self._begin is None:
            self._begin = self.model.decode(**self._settings)

        def one(request: Any) -> str:
            context, options = request.args
            if options.get("do_sample") and float(options.get("temperature", 1.0)) > 0:
                raise Error("do_sample: expected false, since only greedy continuations are made, found true")
            until = options.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            count = int(options.get("max_gen_toks", self.max_gen_toks))
            tokens = self.tok_encode(context) or [self.eot_token_id]
            feed = tokens[-max(self.max_length - count, 1) :]
            sequence = self._begin.copy()
            stop = [] if self._prefix is None else [self._prefix]
            made: list[int] = []
            text = ""
            while len(made) < count:
                made += sequence.generate(feed, min(_PIECE, count - len(made)), stop=stop)
                ended = made[-1] in stop
                text = self.tok_decode(made[:-1] if ended else made)
                if ended or any(end in text for end in until if end):
                    break
                feed = made[-1:]
            for end in until:
                text = text.split(end)[0] if end else text
            self.cache_hook.add_partial("generate_until", request.args, text)
            return text

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            return list(pool.map(one, requests))


def main() -> None:
    """lm-eval's own command line with this model."""
    from lm_eval.__main__ import cli_evaluate

    arguments = sys.argv[1:]
    if not any(a == "--model" or a.startswith("--model=") for a in arguments):
        # Since 0.4.11 `lm_eval` has commands; without one it means `run`.
        at = 1 if arguments[:1] == ["run"] else 0
        sys.argv[1 + at : 1 + at] = ["--model", "scalescope"]
    cli_evaluate()
