"""lm-eval's model: the log-likelihoods of `scalescope eval`, to the bit."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval.api.model", reason="lm-eval is not installed (pip install lm-eval==0.4.13)", exc_type=ImportError)

from lm_eval.api.registry import get_model

import scalescope
from scalescope.lm_eval import Scalescope

TEXTS = [
    "It was a dark night, and the old captain said to the men that the ship would not last until morning.",
    "She looked at the sea  for a long time",
    "word",
    "He said nothing.\n \"No",
]


def request(*args):
    return SimpleNamespace(args=args)


@pytest.mark.parametrize("mode, profile", [("0", "deployed"), ("2-4", "exact"), ("1", "exact")])
def test_last_words_to_the_bit(model, tmp_path, mode, profile):
    samples = tmp_path / "samples.jsonl"
    model.evaluate(TEXTS, modes=mode, profile=profile, reference="none", samples=samples)
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    want = {line["id"]: line for line in lines if "log_likelihood" in line}
    assert len(want) == len(TEXTS)
    lm = Scalescope(model, mode=mode, profile=profile)
    requests = []
    for text in TEXTS:
        head, _, last = text.rpartition(" ")
        requests.append(request(head, " " + last))
    got = lm.loglikelihood(requests, disable_tqdm=True)
    for i, (value, greedy) in enumerate(got):
        assert value == want[i]["log_likelihood"] and greedy == want[i]["greedy"], TEXTS[i]


def test_rolling_to_the_bit(model, tmp_path):
    samples = tmp_path / "samples.jsonl"
    model.evaluate(TEXTS, task="perplexity", window=7, modes="0", reference="none", samples=samples)
    sums = {}
    for line in map(json.loads, samples.read_text().splitlines()):
        if "log_likelihood" in line:
            sums[line["id"]] = sums.get(line["id"], 0.0) + line["log_likelihood"]
    lm = Scalescope(model, mode="0", max_length=7)
    assert lm.loglikelihood_rolling([request(text) for text in TEXTS]) == [sums[i] for i in range(len(TEXTS))]


def test_generation_stops_at_strings(model):
    lm = Scalescope(model, mode="0", max_gen_toks=24)
    whole = lm.generate_until([request("It was a dark", {})])[0]
    want = model.decode_text(model.decode(mode="0").generate("It was a dark", 24, stop=[lm.eot_token_id]))
    assert whole == want.split("<|endoftext|>")[0]
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = lm.generate_until([request("It was a dark", {"until": [middle], "max_gen_toks": 24})])[0]
    assert cut == whole.split(middle)[0]
    many = lm.generate_until([request("It was a dark", {"until": "."})] * 3)
    assert many == [whole.split(".")[0]] * 3
    with pytest.raises(scalescope.Error, match="do_sample"):
        lm.generate_until([request("a", {"do_sample": True, "temperature": 0.7})])


def test_it_is_registered_and_made_from_a_line():
    lm = get_model("scalescope").create_from_arg_string("model=sample,mode=1,profile=exact,max_length=64", {"batch_size": 8})
    assert isinstance(lm, Scalescope) and lm.max_length == 64
    assert math.isfinite(lm.loglikelihood([request("", " night")], disable_tqdm=True)[0][0])
    with pytest.raises(scalescope.Error, match="mode"):
        get_model("scalescope").create_from_arg_string("model=sample,mode=9-9")


def test_the_command_line_scores_a_task_of_ones_own(tmp_path):
    """lm-eval's own command, a task of this machine, no network: its accuracy is that of `scalescope eval`."""
    pytest.importorskip("datasets", reason="lm-eval's own dependencies are not installed (pip install lm-eval==0.4.13)")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:2] + TEXTS[3:]))
    (tmp_path / "lastword.yaml").write_text(f"""
task: lastword
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {tmp_path / "cache"}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' ' + text.split(' ')[-1]}}}}"
metric_list: [{{metric: perplexity, aggregation: perplexity, higher_is_better: false}}]
""")
    command = [sys.executable, "-m", "scalescope.lm_eval", "--model_args", "model=sample,mode=2-4,profile=deployed"]
    command += ["--tasks", "lastword", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "out").rglob("results_*.json")
    got = json.loads(found.read_text())["results"]["lastword"]["perplexity,none"]
    model = scalescope.load("sample")
    row = model.evaluate(TEXTS[:2] + TEXTS[3:], modes="2-4", profile="deployed", reference="none").rows()[0]
    assert got == pytest.approx(row["perplexity"]["value"], rel=1e-9)
