//! Every fault of the fifth list is seen in a dump, first in its own block and step.

use super::super::*;
use super::fifth;

/// The elements that deviate, by token and channel.
fn apart(a: &Value, b: &Value) -> Vec<(usize, usize)> {
    let [a, b] = [a, b].map(|v| v.to_real(None));
    let differ = a.indexed_iter().zip(&b).filter(|((_, a), b)| a != b);
    differ.map(|((at, _), _)| at).collect()
}

fn distinct(of: impl Iterator<Item = usize>) -> usize {
    of.collect::<std::collections::BTreeSet<_>>().len()
}

/// What is wrong with a case at an index of the grid.
fn check(case: &Case, index: usize) -> Option<String> {
    let (model, table) = (sample::model(), ModeTable::default());
    let (mode, profile) = case.on.unwrap();
    let (mode, profile) = (table.get(mode).unwrap(), Profile::get(profile).unwrap());
    let layer = (index * 5 + 1) % model.config().unwrap().n_layers;
    let ids = tokens(64, index as u64 + 1);
    let mut own = model.clone();
    if let Into::Model(change) = case.into {
        change(Arc::make_mut(own.quantized.as_mut().unwrap()), layer);
    }
    let path = Datapath::new(&own, mode, &profile).unwrap();
    let file = dump(&path, layer, case, &ids, Sort::Full);
    let mut recorder = Recorder::new(selection(Sort::Full));
    let path = Datapath::new(&model, mode, &profile).unwrap();
    path.prefill(&ids, LogitRows::None, &mut recorder).unwrap();
    let clean = trace(&ids, recorder);

    let block = Block::of(mode, &profile, Phase::Prefill);
    let mut first = None;
    let layers = 0..model.config().unwrap().n_layers;
    for place in layers.flat_map(|l| block.rows().iter().map(move |row| (l, row))) {
        let (at, row) = place;
        let key = Place::layer(at, row.point);
        let [is, was] = [&file, &clean].map(|f| f.sequences[0].get(&key));
        let (Some(is), Some(was)) = (is, was) else {
            continue;
        };
        let finite = is.to_real(None).iter().all(|v| v.is_finite());
        assert!(finite, "{}: {key} is not finite", case.name);
        let apart = apart(is, was);
        if !apart.is_empty() && first.is_none() {
            first = Some((key, row.step, apart, was.dim()));
        }
    }
    let Some((key, step, apart, (rows, columns))) = first else {
        return Some(format!("{} has no effect in block {layer}", case.name));
    };
    let seen = [
        distinct(apart.iter().map(|at| at.0)),
        distinct(apart.iter().map(|at| at.1)),
    ];
    println!(
        "{} [{} {}]: {key}, {:.2} % of elements, {} of {rows} rows, {} of {columns} columns, part {:?}",
        case.name,
        mode.name,
        profile.name,
        100.0 * apart.len() as f64 / (rows * columns) as f64,
        seen[0],
        seen[1],
        case.part,
    );
    let placed = key.layer == Some(layer) && step.name() == case.step;
    // What is said to be a part is one; rows of a state are channels.
    let sizes = [rows, columns];
    let part = (0..2).all(|i| !case.part[i] || seen[i] < sizes[i]);
    let right = placed && (part || key.point.is_state());
    (!right).then(|| format!("{}: {key}, {seen:?}", case.name))
}

/// As the grid puts them, with the list alone in it.
#[test]
fn every_fault_of_the_fifth_list_has_an_effect() {
    let mut wrong = Vec::new();
    for (i, case) in fifth().iter().enumerate() {
        assert!(case.name.starts_with("fifth: "), "{}", case.name);
        wrong.extend(check(case, i));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
