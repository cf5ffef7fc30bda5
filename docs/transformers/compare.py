#!/usr/bin/env python3
"""Holds `scalescope eval --modes original` against Hugging Face transformers, f32 on the CPU.

    scalescope eval --model DIR --modes original --file passages.jsonl --samples ours.jsonl
    pip install torch transformers
    python compare.py DIR passages.jsonl ours.jsonl [--limit N]

Both score the last word of each passage as lm-eval's lambada_openai does. Exit code 0 if every
target's log-likelihood agrees within 1e-3 and at least 99.9 % of greedy outcomes do, 1 if not.
Copes with nothing but byte-level tokenizers and passages of more than one word.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import MambaForCausalLM

LIMIT = 1e-3
GREEDY = 0.999


def encode_pair(tokenizer, text):
    """lm-eval: the context's trailing blanks go to the target, which is cut from the whole."""
    words = text.split(" ")
    context, target = " ".join(words[:-1]), " " + words[-1]
    kept = context.rstrip()
    target = context[len(kept):] + target
    whole = tokenizer.encode(kept + target, add_special_tokens=False).ids
    before = tokenizer.encode(kept, add_special_tokens=False).ids
    return before, whole[len(before):]


def score(model, before, target):
    ids = torch.tensor([(before + target)[:-1]])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, -len(target):].double()
    logp = torch.log_softmax(logits, dim=-1)
    wanted = torch.tensor(target)
    total = logp.gather(1, wanted[:, None]).sum().item()
    return total, bool((logits.argmax(dim=-1) == wanted).all())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    model = MambaForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    ours = {}
    with args.samples.open() as lines:
        for record in map(json.loads, lines):
            if record.get("mode") == "original":
                ours[record["id"]] = record

    worst, greedy_same, compared = (0.0, None), 0, 0
    sums = [0.0, 0.0]
    with args.data.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if number not in ours or (args.limit and compared >= args.limit):
                continue
            before, target = encode_pair(tokenizer, json.loads(line)["text"])
            theirs, greedy = score(model, before, target)
            mine = ours[number]
            if mine["target_tokens"] != len(target):
                sys.exit(f"line {number}: {mine['target_tokens']} target tokens, not {len(target)}")
            difference = abs(theirs - mine["log_likelihood"])
            if not difference <= worst[0]:
                worst = (difference, number)
            greedy_same += greedy == mine["greedy"]
            compared += 1
            sums[0] += theirs
            sums[1] += mine["log_likelihood"]
            if sys.stderr.isatty() and compared % 50 == 0:
                print(compared, file=sys.stderr)
    if compared == 0:
        sys.exit("nothing compared")
    perplexity = [math.exp(-s / compared) for s in sums]
    print(f"passages compared            {compared}")
    print(f"largest |Δ log-likelihood|   {worst[0]:.2e} (line {worst[1]})")
    print(f"same greedy outcome          {greedy_same} ({greedy_same / compared:.4%})")
    print(f"perplexity, transformers     {perplexity[0]:.6f}")
    print(f"perplexity, scalescope       {perplexity[1]:.6f}")
    passed = worst[0] <= LIMIT and greedy_same >= GREEDY * compared
    print("agrees" if passed else "does NOT agree")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
