//! The router on the CPU: a row of logits a time, in plain loops.

use std::ffi::CStr;

use super::{GroupRank, RouteGroups, RouteParams, RouteScores};
use crate::{
    node::{HostKernel, View},
    pool::{self, Shared},
};

/// Rows of one task.
const ROWS_PER_TASK: usize = 32;

/// Cost of one score, in multiply-adds: an exponential, and the passes that choose.
const WORK_PER_SCORE: usize = 16;

/// `logits` `[tokens, experts]`, optional `correction` `[experts]` -> `experts`, `weights`.
#[derive(Clone, Copy)]
pub(super) struct Route {
    pub(super) num_experts: usize,
    pub(super) params: RouteParams,
}

impl HostKernel for Route {
    const NAME: &'static CStr = c"route";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let logits = inputs[0].as_slice::<f32>();
        let correction = inputs.get(1).map(View::as_slice::<f32>);
        let [experts, weights] = outputs else {
            unreachable!("two outputs were declared")
        };
        let experts = Shared::new(experts.as_mut_slice::<i32>());
        let weights = Shared::new(weights.as_mut_slice::<f32>());
        let (width, k) = (self.num_experts, self.params.experts_per_token);
        let rows = logits.len() / width;
        let work = logits.len() * WORK_PER_SCORE;
        pool::for_each(rows.div_ceil(ROWS_PER_TASK), work, |task| {
            let mut chooser = Chooser::new(self, correction);
            let first = task * ROWS_PER_TASK;
            for row in first..rows.min(first + ROWS_PER_TASK) {
                // SAFETY: tasks write disjoint rows.
                let (experts, weights) =
                    unsafe { (experts.part(row * k, k), weights.part(row * k, k)) };
                chooser.choose(&logits[row * width..][..width], experts, weights);
            }
        });
    }
}

/// What one task needs to choose.
struct Chooser<'a> {
    params: &'a RouteParams,
    correction: Option<&'a [f32]>,
    scores: Vec<f32>,
    /// What experts are chosen by; NaN once they are.
    ranks: Vec<f32>,
}

impl<'a> Chooser<'a> {
    fn new(route: &'a Route, correction: Option<&'a [f32]>) -> Self {
        Self {
            params: &route.params,
            correction,
            scores: vec![0.0; route.num_experts],
            ranks: vec![0.0; route.num_experts],
        }
    }

    fn choose(&mut self, logits: &[f32], experts: &mut [i32], weights: &mut [f32]) {
        match self.params.scores {
            RouteScores::Softmax => softmax(logits, &mut self.scores),
            RouteScores::Sigmoid => sigmoid(logits, &mut self.scores),
        }
        self.ranks.copy_from_slice(&self.scores);
        for (rank, correction) in self.ranks.iter_mut().zip(self.correction.unwrap_or(&[])) {
            *rank += correction;
        }
        if let Some(groups) = self.params.groups {
            self.keep_groups(groups);
        }
        for (expert, weight) in experts.iter_mut().zip(&mut *weights) {
            let best = take_best(&mut self.ranks);
            *weight = self.scores[best];
            *expert = i32::try_from(best).expect("a dimension of MLX");
        }
        let mut scale = self.params.scale;
        if self.params.normalize {
            scale /= weights.iter().sum::<f32>();
        }
        for weight in weights {
            *weight *= scale;
        }
    }

    /// Makes the experts of all but the best groups rank last.
    fn keep_groups(&mut self, groups: RouteGroups) {
        let size = self.ranks.len() / groups.num_groups;
        let mut group_ranks: Vec<f32> = self
            .ranks
            .chunks(size)
            .map(|ranks| match groups.rank {
                GroupRank::Best => best_two(ranks).0,
                GroupRank::BestTwo => {
                    let (first, second) = best_two(ranks);
                    first + second
                }
            })
            .collect();
        let mut kept = vec![false; groups.num_groups];
        for _ in 0..groups.kept {
            kept[take_best(&mut group_ranks)] = true;
        }
        for (ranks, kept) in self.ranks.chunks_mut(size).zip(kept) {
            if !kept {
                ranks.fill(f32::NAN);
            }
        }
    }
}

/// The first of the greatest, which becomes NaN. Only if all are NaN, any.
fn take_best(ranks: &mut [f32]) -> usize {
    let mut best = 0;
    for (index, rank) in ranks.iter().enumerate().skip(1) {
        if *rank > ranks[best] || ranks[best].is_nan() {
            best = index;
        }
    }
    ranks[best] = f32::NAN;
    best
}

/// The two greatest; the second of a single one is 0.
fn best_two(ranks: &[f32]) -> (f32, f32) {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &rank in ranks {
        if rank > first {
            (first, second) = (rank, first);
        } else if rank > second {
            second = rank;
        }
    }
    (first, if ranks.len() < 2 { 0.0 } else { second })
}

fn softmax(logits: &[f32], scores: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for (score, logit) in scores.iter_mut().zip(logits) {
        *score = (logit - max).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

fn sigmoid(logits: &[f32], scores: &mut [f32]) {
    for (score, logit) in scores.iter_mut().zip(logits) {
        *score = 1.0 / (1.0 + (-logit).exp());
    }
}
