//! The rates of docs/diagnosis-catalogue.md, measured over all cases.

use super::*;

pub fn is_right(finding: &Finding, case: &Case, layer: usize) -> bool {
    finding.layer == Some(layer)
        && case
            .right
            .iter()
            .any(|(kind, site)| (finding.kind, &finding.site[..]) == (*kind, *site))
}

/// Seconds from which on a dump is shown whatever is found.
const SLOW: f64 = 20.0;

#[derive(Default)]
struct Rates {
    cases: usize,
    placed: usize,
    patterns: usize,
    first: usize,
    three: usize,
    searched: usize,
    wrong: usize,
    seconds: Vec<f64>,
}

impl Rates {
    fn print(&mut self, name: &str) {
        self.seconds.sort_by(f64::total_cmp);
        let median = self
            .seconds
            .get(self.seconds.len() / 2)
            .copied()
            .unwrap_or(0.0);
        let worst = self.seconds.last().copied().unwrap_or(0.0);
        println!(
            "| {name} | {} | {} | {} | {} of {} | {} | {} | {median:.1} s, at most {worst:.1} s |",
            self.cases,
            self.placed,
            self.patterns,
            self.first,
            self.searched,
            self.three,
            self.wrong
        );
    }
}

/// The sample model, or the quantized one of the file `SCALESCOPE_MODEL`.
pub fn grid_model() -> Model {
    match std::env::var("SCALESCOPE_MODEL") {
        Err(_) => sample::model(),
        Ok(path) => Model {
            quantized: Some(quantized::read(path.as_ref()).unwrap().into()),
            ..Model::default()
        },
    }
}

fn run(cases: &[Case], sort: Sort, modes: &[(&str, &str)], length: usize) -> Rates {
    let model = grid_model();
    let (layers, words) = model.config().map(|c| (c.n_layers, c.vocab_size)).unwrap();
    let table = ModeTable::default();
    let mut rates = Rates::default();
    for (i, case) in cases.iter().enumerate() {
        let (mode, profile) = case.on.unwrap_or(modes[i % modes.len()]);
        let mode = table.get(mode).unwrap();
        let layer = (i * 5 + 1) % layers;
        let mut own = model.clone();
        if let Into::Model(change) = case.into {
            change(Arc::make_mut(own.quantized.as_mut().unwrap()), layer);
        }
        let path = Datapath::new(&own, mode, &Profile::get(profile).unwrap()).unwrap();
        let mut tokens = tokens(length, i as u64 + 1);
        tokens.iter_mut().for_each(|t| *t %= words as u32);
        let file = dump(&path, layer, case, &tokens, sort);
        let begun = Instant::now();
        let found = diagnose(&model, mode, &file, PROFILES).unwrap();
        rates.seconds.push(begun.elapsed().as_secs_f64());
        let first = &found.findings[0];
        let at = found.findings.iter().position(|f| is_right(f, case, layer));
        let placed = first.layer == Some(layer) && first.step == Some(case.step);
        let pattern = first
            .pattern
            .as_ref()
            .is_some_and(|p| [p.tokens.is_part(), p.channels.is_part()] == case.part);
        let names = !["none", "not-finite"].contains(&first.kind);
        let named = first.severity == Severity::Error && names && at != Some(0);
        rates.cases += 1;
        rates.placed += usize::from(placed);
        rates.patterns += usize::from(pattern);
        rates.searched += usize::from(!case.right.is_empty());
        rates.first += usize::from(at == Some(0));
        rates.three += usize::from(at.is_some_and(|at| at < 3));
        rates.wrong += usize::from(named);
        if !placed
            || named
            || rates.seconds.last().is_some_and(|s| *s > SLOW)
            || !pattern && sort == Sort::Full
            || !case.right.is_empty() && at != Some(0)
        {
            println!(
                "   {} (mode {}, {profile}, block {layer}): {placed} {pattern} {at:?}, {:.1} s",
                case.name,
                mode.name,
                rates.seconds.last().unwrap()
            );
            for f in found.findings.iter().take(3) {
                println!("      {} {} {}: {}", f.severity, f.kind, f.site, f.evidence);
            }
        }
    }
    rates
}

/// The rates of docs/diagnosis-catalogue.md; of another model with `SCALESCOPE_MODEL=quantized.safetensors`.
#[test]
#[ignore = "minutes: measures the rates in the documentation; cargo test --release -p scalescope-golden --test all diagnosis::grid -- --ignored --nocapture"]
fn grid() {
    let wanted = std::env::var("SCALESCOPE_GRID").unwrap_or_default();
    let is = |name: &str| wanted.is_empty() || wanted.contains(name);
    let parts = ["full", "three", "blocks", "outputs", "scales", "quiet"];
    assert!(parts.into_iter().any(is), "no part of the grid is {wanted}");
    println!(
        "| dumps | cases | step and block | pattern | edit first | among three | named wrongly | time |"
    );
    let mut all = cases();
    all.extend(more::more());
    all.extend(fresh::fresh());
    all.extend(unseen::unseen());
    all.extend(unseen::second());
    all.extend(third::third());
    all.extend(fourth::fourth());
    all.extend(fifth::fifth());
    if let Ok(name) = std::env::var("SCALESCOPE_CASE") {
        all.retain(|case| case.name.contains(&name));
        assert!(!all.is_empty(), "no case is {name}");
    }
    let int8 = [
        ("0", "exact"),
        ("2-1", "exact"),
        ("0", "deployed"),
        ("2-0", "exact"),
    ];
    if is("full") {
        run(&all, Sort::Full, &int8, 64).print("every tensor");
    }
    if is("three") {
        run(&all, Sort::Three, &int8, 64).print("conv_out, ssm_y, out_proj_out");
    }
    if is("blocks") {
        run(&all, Sort::Blocks, &int8, 64).print("every tensor of three blocks");
    }
    if is("outputs") {
        run(&all, Sort::Outputs, &int8, 64).print("out_proj_out");
    }
    if is("scales") {
        scales();
    }
    if is("quiet") {
        quiet();
    }
}

/// Stale scales of small factors.
fn scales() {
    let model = sample::model();
    let table = ModeTable::default();
    let (mut right, mut all) = (0, 0);
    let mut seconds = Vec::new();
    for (i, by) in [
        "norm_out",
        "in_proj_in",
        "conv_in",
        "conv_out",
        "x_proj_in",
        "dt_proj_in",
        "scan_dt",
        "scan_u",
        "scan_b",
        "scan_c",
        "scan_z",
        "had_out",
        "out_proj_in",
        "state_out",
    ]
    .into_iter()
    .enumerate()
    {
        for factor in [1.01, 0.93, 1.13] {
            let (mode, layer) = (["0", "2-1", "2-4", "3"][i % 4], (i * 5 + 2) % 12);
            let mode = table.get(mode).unwrap();
            let profile = Profile::get(["exact", "deployed"][i % 2]).unwrap();
            let fault: Fault = format!("stale-scale@layer={layer},site={by},factor={factor}")
                .parse()
                .unwrap();
            let path = Datapath::with_faults(&model, mode, &profile, &[fault]).unwrap();
            let clean = Datapath::new(&model, mode, &profile).unwrap();
            let ids = tokens(64, i as u64);
            let of = |path: &Datapath| {
                let mut recorder = Recorder::new(Selection::default());
                path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
                trace(&ids, recorder)
            };
            let file = of(&path);
            if file == of(&clean) {
                continue;
            }
            let begun = Instant::now();
            let found = diagnose(&model, mode, &file, PROFILES).unwrap();
            seconds.push(begun.elapsed().as_secs_f64());
            let first = &found.findings[0];
            all += 1;
            let ok = first.kind == "stale-scale"
                && first.layer == Some(layer)
                && first.severity == Severity::Error;
            right += usize::from(ok);
            if !ok {
                println!(
                    "   {fault} mode {}: {} {} {}",
                    mode.name, first.severity, first.kind, first.evidence
                );
            }
        }
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "| stale scales of 1.01, 0.93, 1.13 | {right} of {all} named | median {:.1} s |",
        seconds[seconds.len() / 2]
    );
}

/// Dumps without a fault, with floats an ulp off in one of fifty, 200 or 1,000: full and sparse.
fn quiet() {
    let model = sample::model();
    let (mut errors, mut all) = (0, 0);
    let mut seconds = Vec::new();
    for (i, mode) in MODES.iter().filter(|m| m.needs_quantized()).enumerate() {
        for (k, sort) in [Sort::Full, Sort::Three, Sort::Outputs]
            .into_iter()
            .enumerate()
        {
            for (flows, of) in [
                (false, 50),
                (true, 50),
                (false, 200),
                (true, 200),
                (true, 1000),
            ] {
                let profile = &PROFILES[(i + k) % PROFILES.len()];
                let path = Datapath::new(&model, mode, profile).unwrap();
                let ids = tokens(64, 77 + i as u64);
                let mut probe = Shaken {
                    flows,
                    of,
                    dice: 12345 + i as u64 + of,
                    recorder: Recorder::new(selection(sort)),
                    blocks: if i % 3 == 2 {
                        vec![0, 6, 11]
                    } else {
                        (0..12).collect()
                    },
                };
                path.prefill(&ids, LogitRows::None, &mut probe).unwrap();
                let mut recorder = probe.recorder;
                recorder
                    .tensors
                    .retain(|place, _| place.layer.is_none_or(|l| probe.blocks.contains(&l)));
                let file = trace(&ids, recorder);
                let begun = Instant::now();
                let found = diagnose(&model, mode, &file, PROFILES).unwrap();
                seconds.push(begun.elapsed().as_secs_f64());
                all += 1;
                let wrong: Vec<&Finding> = found
                    .findings
                    .iter()
                    .filter(|f| f.severity == Severity::Error)
                    .collect();
                errors += usize::from(!wrong.is_empty());
                if let Some(f) = wrong.first() {
                    let sort = match sort {
                        Sort::Full | Sort::Blocks => "full",
                        Sort::Three => "three",
                        Sort::Outputs => "outputs",
                    };
                    println!(
                        "   mode {} {} {sort} one of {of} flows {flows} blocks {}: {} {} {}",
                        mode.name,
                        profile.name,
                        probe.blocks.len(),
                        f.severity,
                        f.kind,
                        f.evidence
                    );
                }
            }
        }
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "| y an ulp off in 2 % | {errors} errors in {all} | median {:.1} s, at most {:.1} s |",
        seconds[seconds.len() / 2],
        seconds[seconds.len() - 1]
    );
}
