//! A sweep: a grid of profiles on one text, with what each costs and what it loses.
//!
//! | file | what it has |
//! |---|---|
//! | `grid` | keys, values, combinations |
//! | `engine` | one design: perplexity, KL, agreement, cost; the Pareto front |
//! | `effects` | what each value of a key costs |
//! | `store` | the file that a sweep goes on with |
//! | `page` | the plot |

pub mod effects;
pub mod engine;
pub mod grid;
pub mod page;
pub mod store;
