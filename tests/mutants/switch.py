#!/usr/bin/env python3
"""Every mutant of a crate in one test program, and the tests run against each.

    switch.py PACKAGE RESULTS --mutants LIST [--jobs N] [--only REGEX] [--shard K/N] [--slow TESTS] [--missed]

cargo-mutants names the mutants (its `--list --json`) and builds the crate again for each. Here all of them are
built at once: a function with mutants asks which mutant is on (the variable MUTANT) and then runs its body as it
was, or as that mutant has it. What does not compile is left out and the rest is built again. A mutant that is no part
of a function's body (a constant), or of another type than the rest of it, gets a build of its own.

Runs in the workspace's folder. The tests of the mutant's own module run first, then all that are quick, then the
rest; the first failure, or too much processor time, ends them. RESULTS gets a JSON of all outcomes.
"""
import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

CORE = """
/// Which mutant is on.
#[allow(missing_docs)]
pub mod mutant {
    use std::sync::LazyLock;
    static ON: LazyLock<u32> = LazyLock::new(|| std::env::var("MUTANT").map_or(0, |v| v.parse().unwrap()));
    #[inline(always)]
    pub fn on() -> u32 {
        *ON
    }
}
"""


def offset(lines, at):
    """Where a line and a column (both from 1) are in the text."""
    return lines[at["line"] - 1] + at["column"] - 1


def mutate(text, start, mutant):
    """The text, which begins at `start` of its file, with the mutant in it."""
    a, b = mutant["from"] - start, mutant["to"] - start
    return text[:a] + mutant["replacement"] + " " + text[b:]


def body_of(text, start, end):
    """Where the body of a function is: the first brace behind its name and arguments, outside of brackets."""
    at = re.compile(r"\bfn\s+\w+").search(text, start, end).end()
    depth = 0
    while True:
        c = text[at]
        if text.startswith("//", at):
            at = text.index("\n", at)
        depth += c in "([" and 1 or c in ")]" and -1 or 0
        if c == "{" and depth == 0:
            return at, end
        at += 1


def takes_closures(mutant):
    """Whether the function of the mutant has closures for arguments."""
    text = pathlib.Path(mutant["file"]).read_text().splitlines()
    span = mutant["function"] and mutant["function"]["span"]
    lines = text[span["start"]["line"] - 1:span["end"]["line"]] if span else []
    signature = "\n".join(lines).split("{")[0]
    return "impl Fn" in signature


def switched(path, mutants):
    """The file with switches, and for each line of it the mutant it belongs to (0: none)."""
    # Inlined, the bodies of one function would multiply with those of another. (The same length as before.)
    text = pathlib.Path(path).read_text()
    text = text.replace("#[inline(always)]", "#[inline(never) ]").replace("#[inline]", "/*inlin*/")
    lines, total = [], 0
    for line in text.splitlines(keepends=True):
        lines.append(total)
        total += len(line)
    functions = {}
    edits = []
    for mutant in mutants:
        mutant["from"], mutant["to"] = offset(lines, mutant["span"]["start"]), offset(lines, mutant["span"]["end"])
        if mutant.get("dead"):
            continue
        # Values of two types cannot stand in one function that does not name its type.
        opaque = mutant["genre"] == "FnValue" and "impl " in mutant["function"]["return_type"]
        if mutant["function"] and not opaque:
            span = mutant["function"]["span"]
            start, end = body_of(text, offset(lines, span["start"]), offset(lines, span["end"]))
            if start < mutant["from"] < end:
                functions.setdefault((start, end), []).append(mutant)
                continue
        number = re.compile(r"-\d+").match(text, mutant["from"])
        if mutant["genre"] == "UnaryOperator" and number and "LazyLock" in text:
            edits.append((number.start(), number.end(), [(0, "(if crate::mutant::on() == %d { " % mutant["id"]),
                (mutant["id"], number[0][1:]), (0, " } else { %s })" % number[0])]))
        else:
            mutant["alone"] = True
    # A function inside another one: their mutants share the outer body.
    for inner in sorted(functions, key=lambda f: f[1] - f[0]):
        outer = [f for f in functions if f[0] < inner[0] and inner[1] < f[1]]
        if outer:
            functions[outer[0]] += functions.pop(inner)
    for (start, end), inside in functions.items():
        body = text[start:end]
        ids = " | ".join(str(m["id"]) for m in inside)
        pieces = [(0, "{ if !matches!(crate::mutant::on(), %s) %s else { match crate::mutant::on() {\n" % (ids, body))]
        for m in inside:
            pieces += [(0, "%d => " % m["id"]), (m["id"], mutate(body, start, m)), (0, "\n")]
        pieces.append((0, "_ => unreachable!() } } }"))
        edits.append((start, end, pieces))
    out, owner, at = [], [0], 0
    for start, end, pieces in sorted(edits) + [(len(text), len(text), [])]:
        for mutant, piece in [(0, text[at:start])] + pieces:
            out.append(piece)
            if mutant:
                owner[-1] = mutant
            owner += [mutant] * piece.count("\n")
        at = end
    return "".join(out), owner


def cargo(package):
    """Builds the tests. The program's path, if there is one, and the compiler's messages."""
    run = subprocess.run(["cargo", "test", "-p", package, "--lib", "--no-run", "--message-format=json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    messages = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    programs = [m["executable"] for m in messages if m.get("executable") and m["profile"]["test"]]
    return programs[-1] if run.returncode == 0 else None, messages


def build_alone(package, mutant):
    """Builds with one mutant; the program's path, or None if it does not compile."""
    path = pathlib.Path(mutant["file"])
    original = path.read_text()
    try:
        path.write_text(mutate(original, 0, mutant))
        return cargo(package)[0]
    finally:
        path.write_text(original)


def build(package, mutants):
    """Builds, leaving out what does not compile, until all the rest does. The program's path."""
    root = pathlib.Path.cwd()
    files = collections.defaultdict(list)
    for mutant in mutants:
        files[mutant["file"]].append(mutant)
    originals = {path: pathlib.Path(path).read_text() for path in files}
    library = pathlib.Path(mutants[0]["file"].split("/")[0], "src/lib.rs")
    originals[library] = library.read_text()
    by_id = {m["id"]: m for m in mutants}
    try:
        library.write_text(originals[library] + CORE)
        while True:
            owners = {}
            texts = {path: switched(path, inside) for path, inside in files.items()}
            for path, (text, owner) in texts.items():
                pathlib.Path(path).write_text(text)
                owners[path] = owner
            program, messages = cargo(package)
            for path in files:
                pathlib.Path(path).write_text(originals[path])
            if program:
                return program
            dead, lost = set(), []
            for message in messages:
                if message["reason"] != "compiler-message" or message["message"]["level"] != "error":
                    continue
                message = message["message"]
                hit = set()
                spans = message["spans"] + [s for c in message["children"] for s in c["spans"]]
                for primary in (True, False):
                    for span in spans:
                        while span:
                            name = os.path.relpath(root / span["file_name"], root)
                            if span.get("is_primary", True) >= primary and name in owners:
                                hit.add(owners[name][span["line_start"] - 1])
                            span = (span.get("expansion") or {}).get("span")
                    hit -= {0}
                    if hit:
                        break
                dead |= hit
                if not hit and spans:
                    lost.append(message["rendered"])
            print(f"left out: {len(dead)} that do not compile", flush=True)
            if not dead:
                sys.exit("does not compile:\n" + "\n".join(lost))
            for id in dead:
                by_id[id]["dead"], by_id[id]["outcome"] = True, "unviable"
    finally:
        for path, text in originals.items():
            pathlib.Path(path).write_text(text)


def limits(seconds):
    def set_limits():
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    return set_limits


def test(program, folder, mutant, arguments, seconds):
    """Whether the tests notice: passed, caught, timeout."""
    environment = dict(os.environ, MUTANT=str(mutant), RUSTC_BOOTSTRAP="1", CARGO_MANIFEST_DIR=str(folder))
    command = [program, "-q", "--test-threads=1", "-Zunstable-options", "--fail-fast", *arguments]
    try:
        run = subprocess.run(command, cwd=folder, env=environment, preexec_fn=limits(seconds), timeout=60 * seconds,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        return "timeout", b""
    if run.returncode == 0:
        return "passed", run.stdout
    return ("timeout" if run.returncode in (-9, -24) else "caught"), run.stdout


def module_of(path):
    """The module whose tests come first: the file's, or its parent's if that is a file (`compare/summary.rs`: compare)."""
    path = pathlib.Path(path).with_suffix("")
    if path.parent.with_suffix(".rs").exists():
        path = path.parent
    return "::".join(path.parts[path.parts.index("src") + 1:]) + "::"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("package")
    parser.add_argument("results")
    parser.add_argument("--mutants", required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--slow", default="", help="tests for the last round, by comma")
    parser.add_argument("--missed", action="store_true", help="only those that RESULTS has as missed")
    arguments = parser.parse_args()
    # So that the files are put back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    every = json.loads(pathlib.Path(arguments.mutants).read_text())
    for id, mutant in enumerate(every, 1):
        mutant["id"] = id
    k, n = map(int, arguments.shard.split("/"))
    mutants = [m for i, m in enumerate(every) if i % n == k and re.search(arguments.only, m["name"])]
    results = pathlib.Path(arguments.results)
    before = json.loads(results.read_text()) if results.exists() else []
    if arguments.missed:
        again = {m["name"] for m in before if m["outcome"] == "missed"}
        mutants = [m for m in mutants if m["name"] in again]
    # What earlier runs found of the others stays.
    others = {m["name"] for m in every} - {m["name"] for m in mutants}
    before = [m for m in before if m["name"] in others]
    if not mutants:
        sys.exit("no such mutants")
    print(f"{len(mutants)} mutants of {len(every)}", flush=True)
    began = time.time()
    slow = [s for s in arguments.slow.split(",") if s]
    skip = [a for s in slow for a in ("--skip", s)]

    # The processor time that the tests need, quick ones and slow ones, and a mutant gets: four times as much.
    needed = {}

    def judge(mutants, program):
        rounds = [lambda m: [module_of(m["file"]), *skip], lambda m: skip, lambda m: slow]
        for round in rounds if slow else rounds[:2]:
            def judge_one(mutant):
                seconds = int(4 * needed[round is rounds[2]]) + 2
                verdict, output = test(program, folder, mutant["id"], round(mutant), seconds)
                if verdict != "passed":
                    mutant["outcome"] = verdict
                    mutant["by"] = [f.decode() for f in re.findall(rb"^---- (\S+)", output, re.M)]
            with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
                list(pool.map(judge_one, mutants))
            mutants = [m for m in mutants if "outcome" not in m]
            print(f"{len(mutants)} left after {time.time() - began:.0f} s", flush=True)
        for mutant in mutants:
            mutant["outcome"] = "missed"
            print("missed:", mutant["name"], flush=True)

    folder = pathlib.Path(mutants[0]["file"].split("/src/")[0]).resolve()
    # Which do not compile is known from the last run, if their file is the same.
    known = results.with_suffix(".unviable.json")
    unviable = json.loads(known.read_text()) if known.exists() else {}
    def key(mutant):
        return hashlib.sha256(pathlib.Path(mutant["file"]).read_bytes() + mutant["name"].encode()).hexdigest()
    for mutant in mutants:
        if key(mutant) in unviable:
            mutant["dead"], mutant["outcome"] = True, "unviable"
    # Each body of a function that takes closures is compiled for each closure, of which there is one in each body of
    # the callers: the two are kept apart.
    for group in [m for m in mutants if not takes_closures(m)], [m for m in mutants if takes_closures(m)]:
        if not group:
            continue
        program = build(arguments.package, group)
        unviable |= {key(m): m["name"] for m in group if m.get("dead")}
        known.write_text(json.dumps(unviable, indent=1))
        print(f"built {len(group)} after {time.time() - began:.0f} s", flush=True)
        # Tests that fail without a mutant would catch everything.
        for rest in [skip, slow] if slow else [skip]:
            before_tests = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            verdict, output = test(program, folder, 0, rest, 600)
            needed[rest is slow] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before_tests
            if verdict != "passed":
                sys.exit("the tests fail without a mutant:\n" + output.decode())
            print(output.decode().strip().splitlines()[-1], f"({needed[rest is slow]:.1f} s)", flush=True)
        judge([m for m in group if "outcome" not in m and "alone" not in m], program)
    for mutant in [m for m in mutants if "alone" in m]:
        alone = build_alone(arguments.package, mutant)
        if alone:
            judge([mutant], alone)
        else:
            mutant["outcome"] = "unviable"
    done = before + [{key: m[key] for key in ("name", "file", "outcome", "by") if key in m} for m in mutants]
    results.write_text(json.dumps(done, indent=1))
    print(f"{'file':40} viable caught timeout missed unviable")
    for file in sorted({m["file"] for m in done}) + [None]:
        of = collections.Counter(m["outcome"] for m in done if file in (None, m["file"]))
        viable = of["caught"] + of["timeout"] + of["missed"]
        print(f"{file or 'together':40} {viable:6} {of['caught']:6} {of['timeout']:7} {of['missed']:6} "
            f"{of['unviable']:8}")
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
