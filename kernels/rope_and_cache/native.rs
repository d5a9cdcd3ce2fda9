//! Heads to queries and cache on the CPU, token by token: angles once a token, each head while it is
//! in the first-level cache.

use std::{cell::RefCell, ffi::CStr};

use crate::{
    PAD_SLOT,
    element::{Float, FloatType, with_float_type},
    node::{HostKernel, View},
    pool::{self, Shared},
    rms_norm::normalise,
    rope::{Angles, RopePairing, turn},
    simd::{Lanes, Operation, vectorized},
};

/// Elements that one task takes.
const ELEMENTS_PER_TASK: usize = 8 * 1024;

/// Cost of one sine and cosine, in multiply-adds.
const WORK_PER_ANGLE: usize = 32;

/// `qkv`, `positions`, `slot_mapping`, `key_cache`, `value_cache`, then `inv_freq` if heads are turned,
/// then the weights of both norms if they are normalised -> queries, `key_cache`, `value_cache`.
#[derive(Clone, Copy)]
pub(super) struct RopeAndCache {
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) num_slots: usize,
    pub(super) cache: FloatType,
    pub(super) norm: Option<(FloatType, f32)>,
    pub(super) rope: Option<(f32, RopePairing)>,
}

/// What a thread keeps between tokens.
#[derive(Default)]
struct Scratch {
    angles: Angles,
    /// A head after its norm.
    normed: Vec<f32>,
    /// A head of keys, ready for the cache.
    key: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl HostKernel for RopeAndCache {
    const NAME: &'static CStr = c"rope_and_cache";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let [query, key_cache, value_cache] = outputs else {
            unreachable!("the node has three outputs")
        };
        let rest = &inputs[5..];
        let (inv_freq, norms) = rest.split_at(usize::from(self.rope.is_some()));
        let norm_type = self.norm.map_or(FloatType::F32, |(weight, _)| weight);
        with_float_type!(self.cache, T => with_float_type!(norm_type, W => Call::<T, W> {
            kernel: self,
            qkv: inputs[0].as_slice(),
            positions: inputs[1].as_slice(),
            slots: inputs[2].as_slice(),
            inv_freq: inv_freq.first().map_or(&[], View::as_slice),
            norms: [norms.first(), norms.last()].map(|norm| norm.map_or(&[][..], View::as_slice)),
            query: Shared::new(query.as_mut_slice()),
            caches: [key_cache, value_cache].map(|cache| {
                let cache = cache.as_mut_slice::<T>();
                assert!(cache.len() == self.num_slots * self.num_kv_heads * self.head_dim);
                Shared::new(cache)
            }),
        }
        .run()));
    }
}

/// What one call of the kernel works on.
struct Call<'a, T, W> {
    kernel: &'a RopeAndCache,
    qkv: &'a [f32],
    positions: &'a [i32],
    slots: &'a [i32],
    inv_freq: &'a [f32],
    /// Of queries and keys; empty if there are none.
    norms: [&'a [W]; 2],
    query: Shared<f32>,
    caches: [Shared<T>; 2],
}

impl<T: Float, W: Float> Call<'_, T, W> {
    fn run(&self) {
        let num_slots = self.kernel.num_slots;
        for &slot in self.slots {
            let in_range = usize::try_from(slot).is_ok_and(|slot| slot < num_slots);
            assert!(
                in_range || slot == PAD_SLOT,
                "slot {slot} is not in a cache of {num_slots} slots"
            );
        }
        let num_tokens = self.positions.len();
        assert!(self.qkv.len() == num_tokens * self.row());
        if self.qkv.is_empty() {
            return;
        }
        let per_task = (ELEMENTS_PER_TASK / self.row()).max(1);
        let work = self.qkv.len() * 2 + num_tokens * self.inv_freq.len() * WORK_PER_ANGLE;
        pool::for_each(num_tokens.div_ceil(per_task), work, |task| {
            let first = task * per_task;
            SCRATCH.with_borrow_mut(|scratch| {
                vectorized(Tokens {
                    call: self,
                    tokens: first..num_tokens.min(first + per_task),
                    scratch,
                });
            });
        });
    }

    /// Elements of one token.
    fn row(&self) -> usize {
        (self.kernel.num_heads + 2 * self.kernel.num_kv_heads) * self.kernel.head_dim
    }
}

struct Tokens<'a, T, W> {
    call: &'a Call<'a, T, W>,
    tokens: std::ops::Range<usize>,
    scratch: &'a mut Scratch,
}

impl<T: Float, W: Float> Operation for Tokens<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self {
            call,
            tokens,
            scratch,
        } = self;
        let RopeAndCache {
            num_heads,
            num_kv_heads,
            head_dim,
            ..
        } = *call.kernel;
        scratch.normed.resize(head_dim, 0.0);
        scratch.key.resize(head_dim, 0.0);
        for token in tokens {
            if let Some((scale, _)) = call.kernel.rope {
                scratch
                    .angles
                    .fill(call.positions[token], call.inv_freq, scale);
            }
            let mut heads = call.qkv[token * call.row()..][..call.row()].chunks_exact(head_dim);
            for (head, x) in heads.by_ref().take(num_heads).enumerate() {
                let to = (token * num_heads + head) * head_dim;
                // SAFETY: each token is of one task.
                let query = unsafe { call.query.part(to, head_dim) };
                call.head::<L>(0, x, (&scratch.angles, &mut scratch.normed), query);
            }
            // `PAD_SLOT` is the only negative one.
            let Ok(slot) = usize::try_from(call.slots[token]) else {
                continue;
            };
            for (cache, shared) in call.caches.iter().enumerate() {
                for head in 0..num_kv_heads {
                    let x = heads.next().expect("a row has so many heads");
                    // SAFETY: slots of one forward are distinct by contract; if they were not,
                    // plain numbers would be overwritten by plain numbers.
                    let to =
                        unsafe { shared.part((slot * num_kv_heads + head) * head_dim, head_dim) };
                    let x = if cache == 0 {
                        let key = &mut scratch.key;
                        call.head::<L>(1, x, (&scratch.angles, &mut scratch.normed), key);
                        key
                    } else {
                        x
                    };
                    for (to, from) in to.iter_mut().zip(x) {
                        *to = T::from_f32(*from);
                    }
                }
            }
        }
    }
}

impl<T, W: Float> Call<'_, T, W> {
    /// One head of queries (0) or keys (1), normalised and turned.
    #[inline(always)]
    fn head<L: Lanes>(
        &self,
        kind: usize,
        x: &[f32],
        (angles, normed): (&Angles, &mut [f32]),
        y: &mut [f32],
    ) {
        let x = match self.kernel.norm {
            Some((_, eps)) => {
                normalise::<L, W>(x, eps, self.norms[kind], normed);
                normed
            }
            None => x,
        };
        match self.kernel.rope {
            Some((_, pairing)) => turn(pairing, x, angles, y),
            None => y.copy_from_slice(x),
        }
    }
}
