//! The pages in headless Chromium, on a wide and on a narrow screen, by day and by night: nothing overflows,
//! everything can be read, picker and sorting work, nothing is fetched.
//! `cargo test --test all pages:: -- --ignored`

use crate::common::{arg, stdout};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const WIDTHS: [u32; 2] = [1366, 390];

/// A browser's document after the page in a frame of some width has told what it saw.
fn dump(browser: &str, frame: &Path, dark: bool) -> String {
    let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!dark));
    let out = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1600,1000",
        ])
        .args(["--virtual-time-budget=10000", "--dump-dom", &scheme])
        .arg(format!("file://{}", frame.display()))
        .output()
        .expect("the browser starts");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What the probe saw of a page.
fn seen(browser: &str, page: &str, width: u32, dark: bool) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let probe = include_str!("pages/probe.js");
    let probed = format!("{page}<script>{probe}</script>");
    fs::write(dir.path().join("page.html"), probed).unwrap();
    let frame = dir.path().join("frame.html");
    let around = format!(
        "<!DOCTYPE html><pre id=seen></pre><iframe src=page.html width={width} height=900 style=border:0></iframe>\
         <script>onmessage = m => seen.textContent = JSON.stringify(m.data)</script>"
    );
    fs::write(&frame, around).unwrap();
    let dom = dump(browser, &frame, dark);
    let told = dom.split("<pre id=\"seen\">").nth(1);
    let told = told
        .and_then(|rest| rest.split("</pre>").next())
        .unwrap_or_default();
    let told = told
        .replace("&gt;", ">")
        .replace("&lt;", "<")
        .replace("&amp;", "&");
    serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {dom:.400}"))
}

fn browser() -> &'static str {
    let runs = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
    BROWSERS.iter().find(runs).expect("Chromium is installed")
}

/// The page is as it should be everywhere; of how many modes one can be picked, and by how many keys it sorts.
fn assert_legible(page: &str, modes: usize, keys: usize) {
    for width in WIDTHS {
        for dark in [false, true] {
            let seen = seen(browser(), page, width, dark);
            assert_eq!(
                (&seen["width"], &seen["dark"]),
                (&width.into(), &dark.into())
            );
            assert_eq!(
                seen["bad"],
                serde_json::json!([]),
                "{width}, dark {dark}: {seen:#}"
            );
            assert!(seen["least"].as_f64().unwrap() >= 4.5, "{seen}");
            assert_eq!(seen["requests"], 0, "{seen}");
            assert_eq!(
                (&seen["picked"], &seen["sorted"]),
                (&modes.into(), &keys.into())
            );
        }
    }
}

#[test]
#[ignore = "needs Chromium: cargo test --test all pages:: -- --ignored"]
fn a_report_is_legible_on_every_screen() {
    let dir = tempfile::tempdir().unwrap();
    let [data, results, file] =
        ["data.jsonl", "eval.json", "report.html"].map(|f| dir.path().join(f));
    let row = "{\"text\": \"It was late in the evening when the old captain came home.\"}\n";
    fs::write(&data, row.repeat(3)).unwrap();
    stdout(&[
        "eval",
        "--data",
        arg(&data),
        "--modes",
        "0,1,2-4",
        "--json",
        arg(&results),
    ]);
    let little = ["--modes", "0,1,2-4,5-7", "--length", "64", "--limit", "2"];
    let wanted = ["report", "--html", arg(&file), "--eval", arg(&results)];
    stdout(&[&wanted[..], &little].concat());
    assert_legible(&fs::read_to_string(&file).unwrap(), 3, 4);
}

#[test]
#[ignore = "needs Chromium: cargo test --test all pages:: -- --ignored"]
fn a_sweep_is_legible_on_every_screen() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sweep.html");
    let vary = [
        "--vary",
        "scan.state=int8,int16",
        "--vary",
        "requant.multiplier_bits=8..9",
    ];
    let wanted = [
        "sweep",
        "--html",
        arg(&file),
        "--length",
        "24",
        "--limit",
        "2",
    ];
    stdout(&[&wanted[..], &vary].concat());
    assert_legible(&fs::read_to_string(&file).unwrap(), 0, 0);
}

/// The probe sees what is wrong with a page.
#[test]
#[ignore = "needs Chromium: cargo test --test all pages:: -- --ignored"]
fn what_is_wrong_with_a_page_is_seen() {
    let page = "<!DOCTYPE html><meta name=viewport content='width=device-width'><body style='background:#fff'>\
        <p style='color:#999'>pale</p><div style='width:800px'>wide</div><img src=none.png>";
    let seen = seen(browser(), page, 390, false);
    let bad = seen["bad"].to_string();
    assert!(
        bad.contains("contrast 2.8") && bad.contains("wider than the window"),
        "{seen}"
    );
    assert!(seen["requests"].as_u64() > Some(0), "{seen}");
}
