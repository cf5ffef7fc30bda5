//! The embedded text, and what the embedded model makes of it: with the scales it came with, and with
//! scales calibrated on text that it wrote itself.

use rayon::prelude::*;
use scalescope_sim::calibrate::{CalibrationOptions, calibrate};
use scalescope_sim::checkpoint::quantize::{Ends, quantize};
use scalescope_sim::checkpoint::recipe::Recipe;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::generate::{OwnText, own_text};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::model::Model;
use scalescope_sim::profile::Profile;
use scalescope_sim::progress;
use scalescope_sim::sample;
use scalescope_sim::score::{SequenceScore, perplexity};
use scalescope_sim::trace::Blind;
use std::sync::Arc;
use tokenizers::Tokenizer;

fn tokens(texts: &[String]) -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::from_bytes(sample::tokenizer_json()).unwrap();
    let ids = |text: &String| {
        tokenizer
            .encode(text.as_str(), false)
            .unwrap()
            .get_ids()
            .to_vec()
    };
    texts.iter().map(ids).collect()
}

/// Over the first 512 tokens of each passage.
fn perplexity_in(mode: &str, model: &Model) -> f64 {
    let (modes, exact) = (ModeTable::default(), Profile::get("exact").unwrap());
    let datapath = Datapath::new(model, modes.get(mode).unwrap(), &exact).unwrap();
    let scores: Vec<SequenceScore> = tokens(&sample::texts())
        .par_iter()
        .map(|tokens| {
            let tokens = &tokens[..512];
            let run = datapath.prefill(tokens, LogitRows::All, &mut Blind);
            SequenceScore::new(tokens, &run.unwrap().0.to_real())
        })
        .collect();
    perplexity(scores.iter().flat_map(|score| &score.log_likelihood))
}

#[test]
fn passages_are_long_enough_and_prompts_short() {
    let texts = tokens(&sample::texts());
    assert_eq!(texts.len(), 4);
    assert!(texts.iter().all(|ids| ids.len() >= 512));
    let prompts = tokens(&sample::prompts());
    assert!((3..=5).contains(&prompts.len()));
    assert!(prompts.iter().all(|ids| (4..64).contains(&ids.len())));
}

#[test]
fn its_own_text_calibrates_it_nearly_as_well_as_books() {
    let books = sample::model();
    let float = perplexity_in("1", &books);
    assert!((10.0..120.0).contains(&float), "{float}");
    // A thousand tokens, an eighth of the default.
    let text = OwnText {
        sequences: 8,
        length: 128,
        ..OwnText::default()
    };
    let text = own_text(&books, &text, &progress::ignore).unwrap();
    let options = CalibrationOptions::default();
    let scales = calibrate(&books, &text, &options, &progress::ignore).unwrap();
    let own = Model {
        quantized: Some(Arc::new(
            quantize(
                books.float.as_ref().unwrap(),
                &scales,
                &Recipe::GOLDEN,
                Ends::F16,
            )
            .unwrap(),
        )),
        ..books.clone()
    };
    for (calibrated_on, model) in [("books", &books), ("its own text", &own)] {
        let ratio = perplexity_in("0", model) / float;
        println!("mode 1 {float:.3}, mode 0 calibrated on {calibrated_on} {ratio:.4} of that");
        assert!((0.97..1.03).contains(&ratio), "{calibrated_on}: {ratio}");
    }
}
