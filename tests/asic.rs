//! Commands for chip designers: headroom, sweep, export, check export, profile files.

use crate::common::{arg as text, json};

/// How a run ended, and what it said.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(args: &[&str]) -> Ended {
    let out = crate::common::run(args);
    Ended {
        code: out.status.code().expect("no signal"),
        stdout: String::from_utf8(out.stdout).expect("results are text"),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

#[test]
fn headroom_bounds_what_it_sees() {
    let found = json(&[
        "headroom",
        "--text",
        "It was a dark and stormy night",
        "--json",
    ]);
    let accumulators = found["accumulators"].as_array().unwrap();
    let names: std::collections::BTreeSet<&str> = accumulators
        .iter()
        .map(|a| a["accumulator"].as_str().unwrap())
        .collect();
    for name in [
        "in_proj",
        "conv",
        "x_proj",
        "dt_proj",
        "scan sum",
        "scan state",
        "hadamard",
        "out_proj",
    ] {
        assert!(names.contains(name), "{name}");
    }
    for a in accumulators {
        let here = a["bits_enough_here"].as_u64().unwrap();
        assert!(here > 1, "{a}");
        assert_eq!(a["overflows"], 0, "{a}");
        if let Some(always) = a["bits_always_enough"].as_u64() {
            assert!(here <= always, "{a}");
        }
    }
    assert_eq!(found["functions"].as_array().unwrap().len() % 4, 0);
    let narrow = tempfile::tempdir().unwrap();
    let profile = narrow.path().join("narrow.toml");
    std::fs::write(
        &profile,
        "version = 1\n[accumulator]\nbits = 14\noverflow = \"wrap\"\n",
    )
    .unwrap();
    let found = json(&[
        "headroom",
        "--profile",
        text(&profile),
        "--text",
        "It was a dark",
        "--json",
    ]);
    let overflows = found["accumulators"].as_array().unwrap().iter();
    assert!(
        overflows
            .map(|a| a["overflows"].as_u64().unwrap())
            .sum::<u64>()
            > 0
    );
}

#[test]
fn headroom_of_each_block_is_that_of_its_json() {
    let words = ["headroom", "--text", "It was a dark", "--by-block"];
    let printed = run(&words).stdout;
    let found = json(&[&words[..3], &["--json"]].concat());
    let of_block = |block: u64| -> Vec<String> {
        let all = found["accumulators"].as_array().unwrap().iter();
        let own = all.filter(|a| a["layer"] == block);
        own.map(|a| a["bits_enough_here"].to_string()).collect()
    };
    let table = printed.split("block by block").nth(1).unwrap();
    for block in 0..12 {
        let line = table.lines().find(|line| {
            let first = line.split_whitespace().next();
            first == Some(block.to_string().as_str())
        });
        let shown: Vec<&str> = line.unwrap().split_whitespace().skip(1).collect();
        let mut shown: Vec<String> = shown.into_iter().map(str::to_owned).collect();
        let mut wanted = of_block(block);
        shown.sort();
        wanted.sort();
        assert_eq!(shown, wanted, "block {block}");
        assert_eq!(shown.len(), 8);
    }
}

#[test]
fn a_sweep_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (file, page) = (folder.path().join("s.jsonl"), folder.path().join("s.html"));
    let sweep = |vary: &str, tokens: &str| {
        let args = [
            "sweep",
            "--vary",
            vary,
            "--text",
            "It was a dark and stormy night; the rain fell in torrents",
            "--budget",
            tokens,
            "-o",
            text(&file),
            "--html",
            text(&page),
            "--json",
        ];
        run(&args)
    };
    assert_eq!(sweep("scan.state=int8,f16", "12").code, 0);
    let lines = || std::fs::read_to_string(&file).unwrap();
    let first = lines();
    assert_eq!(first.lines().count(), 3);
    assert!(std::fs::read_to_string(&page).unwrap().contains("<svg"));
    // More values: only they run. A line that was cut off is run again.
    std::fs::write(&file, &first[..first.len() - 20]).unwrap();
    let again = sweep("scan.state=int8,f16,int16", "12");
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(lines().lines().count(), 4);
    let designs: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    let designs = designs["designs"].as_array().unwrap();
    assert_eq!(designs.len(), 3);
    assert!(designs.iter().any(|d| d["pareto"] == true));
    let mut before: Vec<&str> = first.lines().skip(1).collect();
    let after = lines();
    before.retain(|line| !after.contains(line));
    assert!(before.is_empty(), "a design gave other numbers: {before:?}");
    let other = sweep("scan.state=int8", "11");
    assert_eq!(other.code, 2);
    assert!(other.stderr.contains("settings: t"), "{}", other.stderr);
    let bad = sweep("scan.state=int7", "12");
    assert_eq!(bad.code, 2);
    assert!(bad.stderr.contains("scan.state"), "{}", bad.stderr);
}

#[test]
fn a_sweep_varies_the_bits_of_weights() {
    let sweep = |vary: &str, more: &[&str]| {
        let args = [
            "sweep",
            "--profile",
            "exact",
            "--vary",
            vary,
            "--text",
            "It was a dark and stormy night",
            "--json",
        ];
        run(&[&args[..], more].concat())
    };
    let found = sweep("weights=w8a8,w4a8:out_proj,w4a8:out_proj+x_proj@3", &[]);
    assert_eq!(found.code, 0, "{}", found.stderr);
    let found: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
    let designs = found["designs"].as_array().unwrap();
    let bits = |i: usize| designs[i]["cost"]["weight_bits"].as_u64().unwrap();
    let kl = |i: usize| designs[i]["kl"].as_f64().unwrap();
    // out_proj is [192, 384]: half its bits, less a scale for each row and each group of 128.
    let saved =
        |rows: u64, columns: u64| 4 * rows * columns - 32 * rows - 16 * rows * columns / 128;
    assert_eq!(bits(0) - bits(1), 12 * saved(192, 384));
    assert_eq!(bits(1) - bits(2), saved(44, 384));
    assert!(kl(0) != kl(1) && kl(1) != kl(2));
    for (vary, more, words) in [
        ("weights=int4", &[][..], "w4a8:STEP"),
        ("weights=w4a8:out_proj@12", &[], "below 12"),
        (
            "weights=w4a8:x_proj",
            &["--vary", "weights.bits=4"],
            "makes its own",
        ),
    ] {
        let refused = sweep(vary, more);
        assert_eq!(refused.code, 2, "{vary}");
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
}

#[test]
fn exported_vectors_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("v");
    let export = run(&[
        "export",
        "--layer",
        "2",
        "--text",
        "It was a dark",
        "-o",
        text(&out),
    ]);
    assert_eq!(export.code, 0, "{}", export.stderr);
    let alone = run(&["check", "export", text(&out), "--no-dumps"]);
    assert_eq!(alone.code, 0, "{}{}", alone.stdout, alone.stderr);
    assert!(
        alone
            .stdout
            .contains(", 0 words of dumps: every word is equal")
    );
    // Without a dump nothing of a device was verified.
    let nothing = run(&["check", "export", text(&out.join("conv"))]);
    assert_eq!(nothing.code, 1);
    assert!(
        nothing.stdout.contains("out: no dump of a device"),
        "{}",
        nothing.stdout
    );
    // A dump that differs, then a file that was altered.
    let words = std::fs::read_to_string(out.join("conv/out.hex")).unwrap();
    std::fs::write(out.join("conv/out.dump.hex"), &words).unwrap();
    assert_eq!(run(&["check", "export", text(&out.join("conv"))]).code, 0);
    let other = if words.starts_with("00") { "01" } else { "00" };
    std::fs::write(
        out.join("conv/out.dump.hex"),
        format!("{other}{}", &words[2..]),
    )
    .unwrap();
    let found = run(&["check", "export", text(&out.join("conv"))]);
    assert_eq!(found.code, 1);
    assert!(found.stdout.contains("MISMATCH"), "{}", found.stdout);
    // Under any name that says so, in any form; a dump of nothing is told.
    for name in ["out_dump.hex", "OUT.dump.mem", "out.dump", "out.hex.dump"] {
        std::fs::rename(out.join("conv/out.dump.hex"), out.join("conv").join(name)).unwrap();
        let found = run(&["check", "export", text(&out.join("conv"))]);
        assert_eq!(found.code, 1, "{name}");
        assert!(
            found.stdout.contains(" words of dumps: MISMATCH")
                && !found.stdout.contains(", 0 words")
        );
        std::fs::rename(out.join("conv").join(name), out.join("conv/out.dump.hex")).unwrap();
    }
    let dump = |contents: &str| {
        std::fs::write(out.join("conv/out.dump.hex"), contents).unwrap();
        run(&["check", "export", text(&out.join("conv")), "--json"])
    };
    let row = |found: &Ended| -> serde_json::Value {
        let json: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
        json["folders"][0]["dumps"][0].clone()
    };
    for (contents, field, first) in [
        (format!("{words}00\n"), "extra", words.lines().count()),
        (
            format!("{}/* */ @1 xX // {}", &words[..3], &words[5..]),
            "unknown",
            1,
        ),
        (words[3..].to_owned(), "missing", 0),
    ] {
        let found = dump(&contents);
        let row = row(&found);
        assert_eq!(
            (found.code, &row[field]),
            (1, &serde_json::json!(1)),
            "{field}: {row}"
        );
        assert!(field == "missing" || row["first"] == first, "{row}");
    }
    let found = dump("00 0g");
    assert_eq!(found.code, 2);
    assert!(
        found.stderr.contains("line 1, column 4"),
        "{}",
        found.stderr
    );
    // A checkout with other ends of lines is the same export.
    std::fs::write(
        out.join("conv/x.hex"),
        std::fs::read_to_string(out.join("conv/x.hex"))
            .unwrap()
            .replace('\n', "\r\n"),
    )
    .unwrap();
    assert_eq!(dump(&words.replace('\n', "\r\n")).code, 0);
    std::fs::write(out.join("conv/y.dump.hex"), &words).unwrap();
    let stray = run(&["check", "export", text(&out.join("conv"))]);
    assert_eq!(stray.code, 1);
    assert!(
        stray.stdout.contains("y.dump.hex: a dump of no array"),
        "{}",
        stray.stdout
    );
    std::fs::remove_file(out.join("conv/y.dump.hex")).unwrap();
    std::fs::remove_file(out.join("conv/out.dump.hex")).unwrap();
    let golden = text(&out.join("conv")).to_owned();
    let check = run(&["check", "--golden", &golden, "--cumulative"]);
    assert_eq!(check.code, 0, "{}{}", check.stdout, check.stderr);
    assert_eq!(run(&["compare", &golden, &golden]).code, 0);
    std::fs::write(out.join("conv/out.hex"), format!("{other}{}", &words[2..])).unwrap();
    assert_eq!(run(&["check", "export", &golden, "--no-dumps"]).code, 1);
    assert_eq!(run(&["check", "--golden", &golden, "--cumulative"]).code, 1);
    std::fs::write(out.join("conv/manifest.json"), "{}").unwrap();
    assert_eq!(run(&["check", "export", &golden]).code, 2);
}

/// An export into the folder of another leaves nothing of it, and nothing else is touched.
#[test]
fn an_export_leaves_nothing_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("vectors");
    let export = |step: &str, format: &str| {
        let out = run(&[
            "export",
            "--layer",
            "0",
            "--length",
            "2",
            "--step",
            step,
            "--format",
            format,
            "-o",
            text(&to),
        ]);
        assert_eq!(out.code, 0, "{}", out.stderr);
        out.stderr
    };
    assert_eq!(export("dt_proj", "hex"), "");
    let files = || {
        let names = std::fs::read_dir(&to).unwrap();
        let names = names.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.collect::<std::collections::BTreeSet<String>>()
    };
    std::fs::write(to.join("out.dump.hex"), "00\n").unwrap();
    std::fs::write(to.join("mine.sv"), "").unwrap();
    assert!(files().contains("tb_dt_proj.sv"));
    let said = export("x_proj", "npy");
    assert!(said.contains("of an earlier export removed"), "{said}");
    let now = files();
    let left = |name: &&String| name.ends_with(".hex") || name.ends_with(".sv");
    assert_eq!(now.iter().filter(left).collect::<Vec<_>>(), ["mine.sv"]);
    assert_eq!(run(&["check", "export", text(&to), "--no-dumps"]).code, 0);
}

/// A fixed-point scan takes codes of B and C: what needs them in floating point is left out, by name.
#[test]
fn costs_and_the_report_run_on_a_chip() {
    let little = ["--profile", "asic-int8", "--length", "24", "--limit", "1"];
    let costs = json(&[&["attribute", "--mode", "0", "--json"][..], &little].concat());
    assert_eq!(costs["not_switched"], serde_json::json!(["x_proj_out"]));
    let sites = costs["sites"].as_array().unwrap();
    assert!(sites.iter().any(|site| site["site"] == "conv_out"));
    assert!(sites.iter().all(|site| site["site"] != "x_proj_out"));
    let text = run(&[&["attribute", "--mode", "0"][..], &little].concat());
    assert!(text.stdout.contains("not switched"), "{}", text.stdout);
    let out = run(&[&["report", "--json"][..], &little].concat());
    assert_eq!(out.code, 0, "{}", out.stderr);
    for name in ["6-0", "6-1", "6-2", "6-3"] {
        assert!(
            out.stderr.contains(&format!("mode {name} is left out")),
            "{}",
            out.stderr
        );
    }
    let answer: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    assert_eq!(answer["modes"].as_array().unwrap().len(), 19);
    // One that is named is refused.
    let out = run(&[&["report", "--modes", "6-0"][..], &little].concat());
    assert_eq!(out.code, 2);
    assert!(out.stderr.contains("FP32 B"), "{}", out.stderr);
}
