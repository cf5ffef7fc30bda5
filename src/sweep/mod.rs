//! A sweep: a grid of profiles on one text, with what each costs and what it loses.
//!
//! | file | what it has |
//! |---|---|
//! | `grid` | keys, values, combinations |
//! | `engine` | one design: perplexity, KL, agreement, cost; the Pareto front |
//! | `store` | the file that a sweep goes on with |
//! | `page` | the plot |

pub mod engine;
pub mod grid;
pub mod page;
pub mod store;
