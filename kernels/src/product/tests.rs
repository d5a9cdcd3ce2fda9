//! Tests of products: their bits, and how often they read their weights.

mod bits;
mod reads;
