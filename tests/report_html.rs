//! The page of `report --html`: self-contained, well-formed, escaped, and of the same numbers as its
//! JSON twin.

use crate::common::{arg, json, refusal, stdout};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const TEXT: &str = "It was late in the evening when the old captain came home from the harbour.";

/// Elements that have no end.
const VOID: [&str; 4] = ["meta", "wbr", "br", "input"];

/// The page and the JSON of the same run, with an odd mode among the others.
fn page(dir: &Path, more: &[&str]) -> (String, Value) {
    let modes = dir.join("modes.toml");
    let row = "[mode.\"a<b>\"]\nbase = \"2-4\"\nsummary = \"<script>alert('x')</script> & \\\"more\\\"\"\n";
    fs::write(&modes, row).unwrap();
    let html = dir.join("out.html");
    let fixed = [
        "report",
        "--text",
        TEXT,
        "--modes-file",
        arg(&modes),
        "--html",
        arg(&html),
    ];
    let args = [&fixed[..], &["--modes", "1,0,2-0,a<b>", "--json"], more].concat();
    let json = json(&args);
    (fs::read_to_string(&html).unwrap(), json)
}

/// Results of `eval` on a few passages.
fn results(dir: &Path) -> std::path::PathBuf {
    let (data, out) = (dir.join("data.jsonl"), dir.join("results.json"));
    let lines = [
        "the old captain came home",
        "she was very happy",
        "a long time ago",
        "he went to bed",
    ];
    let lines: Vec<String> = (lines.iter())
        .map(|text| serde_json::json!({ "text": text }).to_string())
        .collect();
    fs::write(&data, lines.join("\n")).unwrap();
    stdout(&[
        "eval",
        "--data",
        arg(&data),
        "--modes",
        "0,1,2-1",
        "--json",
        arg(&out),
    ]);
    out
}

/// Every element is closed, in order, and every attribute quoted.
fn assert_well_formed(html: &str) {
    let body = html.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    let mut open: Vec<&str> = Vec::new();
    let mut rest = body;
    while let Some(start) = rest.find('<') {
        assert!(
            !rest[..start].contains('>'),
            "a stray > before {:.60}",
            &rest[start..]
        );
        let tag = &rest[start + 1..];
        let mut quoted = false;
        let end = tag.find(|c| {
            quoted ^= c == '"';
            c == '>' && !quoted
        });
        let (tag, after) = tag.split_at(end.expect("a tag ends"));
        rest = &after[1..];
        let name = tag
            .split_whitespace()
            .next()
            .unwrap()
            .trim_start_matches('/');
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !VOID.contains(&name) {
            open.push(name);
            if name == "style" {
                let end = rest.find("</style>").expect("style ends");
                rest = &rest[end..];
            }
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_stands_alone_and_holds_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let eval = results(dir.path());
    let (html, json) = page(dir.path(), &["--eval", arg(&eval)]);
    assert_well_formed(&html);
    for outside in [
        "http:", "https:", "//", "src=", "url(", "@import", "<link", "<script", "<iframe",
    ] {
        assert!(!html.contains(outside), "{outside}");
    }
    for part in [
        "prefers-color-scheme: dark",
        "@media print",
        "href=\"#reading\"",
        "id=\"verdict\"",
        "id=\"reading\"",
    ] {
        assert!(html.contains(part), "{part}");
    }
    // Texts of a user are text, not markup.
    assert!(html.contains("&lt;script&gt;alert") && html.contains("Mode a&lt;b&gt;"));
    // Links lead somewhere.
    for link in html.split("href=\"#").skip(1) {
        let target = link.split('"').next().unwrap();
        assert!(html.contains(&format!("id=\"{target}\"")), "{target}");
    }
    for mode in json["modes"].as_array().unwrap() {
        for (key, digits) in [("perplexity", 3), ("kl", 5)] {
            let number = format!("<td>{:.digits$}</td>", mode[key].as_f64().unwrap());
            assert!(html.contains(&number), "{key} {number}");
        }
    }
    // Every mode with its cost in one chart.
    let chart = html
        .split("<svg")
        .nth(1)
        .unwrap()
        .split("</svg>")
        .next()
        .unwrap();
    for cost in json["verdict"]["modes"].as_array().unwrap() {
        let mode = cost["mode"]
            .as_str()
            .unwrap()
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        assert!(
            chart.contains(&format!(">{mode}</text>")),
            "{mode}: {chart}"
        );
    }
    let details = json["details"].as_array().unwrap();
    let names: Vec<&str> = details
        .iter()
        .map(|d| d["mode"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["0", "2-0", "a<b>"]);
    assert_eq!(
        (&details[0]["same_as"], &details[1]["same_as"]),
        (&Value::Null, &"0".into())
    );
    // One mode is picked at a time, the first to begin with.
    assert_eq!(html.matches("name=\"mode\"").count(), details.len());
    for i in 0..details.len() {
        let rule = format!("body:has(#pick-{i}:checked) #mode-");
        assert!(html.contains(&rule), "{rule}");
    }
    assert!(html.contains("section.mode { display: none; }"));
    let mut cells = 0;
    for detail in details.iter().filter(|d| d["same_as"].is_null()) {
        for q in detail["lineage"]["quantizers"].as_array().unwrap() {
            let ratio = format!(">{:.3}", q["scale_ratio"].as_f64().unwrap());
            assert!(html.contains(&ratio), "{ratio}");
        }
        let attribution = &detail["attribution"];
        let costly = attribution["remarks"].as_array().unwrap();
        for remark in detail["remarks"].as_array().unwrap().iter().chain(costly) {
            let words = remark["words"].as_str().unwrap().replace('&', "&amp;");
            assert!(html.contains(&words), "{words}");
        }
        let switched = attribution["sites"].as_array().unwrap();
        assert!(switched.len() >= 12 * 13);
        cells += switched.len();
        for site in switched {
            let title = format!(
                "title=\"block {} {}: one off {:.5} ",
                site["layer"],
                site["site"].as_str().unwrap(),
                site["one_off_kl"]["mean"].as_f64().unwrap()
            );
            assert!(html.contains(&title), "{title}");
        }
        let sites = detail["propagation"]["sites"].as_array().unwrap();
        let in_blocks: Vec<&Value> = sites.iter().filter(|s| s["layer"].is_number()).collect();
        cells += 2 * in_blocks.len();
        for site in in_blocks {
            let title = format!(
                "title=\"block {} {}: local ",
                site["layer"],
                site["site"].as_str().unwrap()
            );
            assert!(html.contains(&title), "{title}");
        }
    }
    assert_eq!(html.matches("class=\"cell").count(), cells);
    let results: Value = serde_json::from_str(&fs::read_to_string(&eval).unwrap()).unwrap();
    for mode in results["modes"].as_array().unwrap() {
        let perplexity = format!(
            "<td>{:.3}</td>",
            mode["perplexity"]["value"].as_f64().unwrap()
        );
        assert!(html.contains(&perplexity), "{perplexity}");
    }
    // Four passages tell no modes apart: they share a letter.
    assert!(html.contains("tied: a") && !html.contains("tied: b"));
    assert!(html.contains("not a ranking"));
}

#[test]
fn results_that_are_none_are_refused_and_no_page_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (html, bad) = (dir.path().join("out.html"), dir.path().join("bad.json"));
    fs::write(&bad, "{\"modes\": 3}").unwrap();
    let args = [
        "report",
        "--text",
        TEXT,
        "--modes",
        "0",
        "--html",
        arg(&html),
    ];
    let line = refusal(&[&args[..], &["--eval", arg(&bad)]].concat());
    assert!(
        line.contains("bad.json") && line.contains("eval --json"),
        "{line}"
    );
    let line = refusal(&[&args[..], &["--eval", "no/such.json"]].concat());
    assert!(line.contains("no/such.json"), "{line}");
    assert!(!html.exists());
    let line = refusal(&[
        "report",
        "--text",
        TEXT,
        "--modes",
        "0",
        "--html",
        "no/such/dir/out.html",
    ]);
    assert!(line.contains("no/such/dir"), "{line}");
}

#[test]
fn the_reference_has_a_row_though_nobody_asked_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.html");
    let args = ["--modes", "2-4", "--length", "24", "--limit", "1"];
    let text = stdout(&[&["report", "--html", arg(&file)][..], &args].concat());
    let html = fs::read_to_string(&file).unwrap();
    assert!(html.contains("(the reference)"));
    // Sorted by KL it comes before mode 2-4.
    assert!(html.contains("<tr class=\"reference\" style=\"--kl: 0;"));
    assert!(html.contains("<tr class=\"\" style=\"--kl: 1;"));
    assert!(
        text.lines()
            .any(|line| line.split_whitespace().take(2).eq(["1", "0.00000"])),
        "{text}"
    );
}

/// Costs on the page are those of `attribute` within their errors, though they are measured on less.
#[test]
fn the_page_ranks_as_attribute_does() {
    let dir = tempfile::tempdir().unwrap();
    let html = dir.path().join("page.html");
    // On fewer positions small differences look more precise than they are (docs/attribution.md).
    let asked = ["--length", "128", "--json"];
    let report = json(
        &[
            &["report", "--modes", "2-4", "--html", arg(&html)][..],
            &asked,
        ]
        .concat(),
    );
    let page = &report["details"][0]["attribution"];
    let found = json(&[&["attribute", "--mode", "2-4"][..], &asked].concat());
    assert!(page["positions"].as_u64() < found["positions"].as_u64());
    let sites = |of: &Value| -> BTreeMap<(u64, String), (f64, f64)> {
        let all = of["sites"].as_array().unwrap().iter();
        let key = |s: &Value| (s["layer"].as_u64().unwrap(), s["site"].to_string());
        let number = |s: &Value, name: &str| s["cost_kl"][name].as_f64().unwrap();
        all.map(|s| (key(s), (number(s, "mean"), number(s, "se"))))
            .collect()
    };
    let (on_page, measured) = (sites(page), sites(&found));
    assert_eq!(on_page.len(), measured.len());
    let mut told = 0;
    for (key, (mean, se)) in on_page {
        let (other, others) = measured[&key];
        let apart = (mean - other).abs() / se.hypot(others);
        assert!(apart < 3.0, "{key:?}: {mean} ± {se}, {other} ± {others}");
        told += usize::from(mean > 3.0 * se);
    }
    assert!(told > 20, "{told}");
}

/// The commands to go on with have the text and the profile that were asked for.
#[test]
fn the_next_command_asks_of_the_same() {
    let words = ["--text", "The old sea", "--profile", "deployed"];
    let text = stdout(&[&["report", "--modes", "2-1"][..], &words].concat());
    let next = "scalescope attribute --mode 2-1 --text 'The old sea' --profile deployed";
    assert!(text.contains(next), "{text}");
}
