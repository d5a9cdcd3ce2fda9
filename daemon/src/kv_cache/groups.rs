//! Which layers share a block table, and which share memory.
//!
//! vLLM puts layers that attend alike into a group and gives each group a block table of its own.
//! All groups draw their blocks from one pool: the same block is, for each of the layers of the
//! group that owns it, a page of that layer's array. So the first layers of all groups share one
//! array, the second ones another, and a block takes as much memory as the largest group needs.
//!
//! # Source
//! vLLM `_get_kv_cache_groups_uniform_page_size` and `get_kv_cache_config_from_groups`
//! (v1/core/kv_cache_planning.py).

use metal_rpc_protocol::KvCacheSpec;

/// Why groups cannot be used. Scope: the request that names them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// It would need a block table and nobody would write into it.
    #[error("KV-cache group {group} has no layer")]
    Empty {
        /// The group.
        group: usize,
    },
    /// Not one of the model's.
    #[error("KV-cache group {group} has layer {layer}, the model has {num_layers} layers")]
    UnknownLayer {
        /// The group.
        group: usize,
        /// The layer named.
        layer: u32,
        /// Layers of the model.
        num_layers: usize,
    },
    /// A layer needs one place for its keys and values.
    #[error("layer {layer} must stand in one KV-cache group, but stands in {count}")]
    NotOnce {
        /// The layer.
        layer: usize,
        /// How often it is named.
        count: usize,
    },
    /// Their pages would have different sizes.
    #[error(
        "layers {first} and {second} would share memory, as the layers {array} of their KV-cache \
         groups, but differ in heads, head size or dtype"
    )]
    Format {
        /// A layer.
        first: usize,
        /// Another.
        second: usize,
        /// Their place in their groups.
        array: usize,
    },
}

/// Where a layer's keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPlace {
    /// The array, which it shares with layers of other groups: its place in its group.
    pub array: usize,
    /// Its KV-cache group.
    pub group: usize,
}

/// The groups of a model's layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheGroups {
    places: Vec<LayerPlace>,
    /// By array, one of the layers that it belongs to.
    owners: Vec<usize>,
    windows: Vec<Option<u32>>,
}

impl CacheGroups {
    /// The groups that a frontend names: layers as indices into `specs`.
    ///
    /// # Errors
    /// [`GroupError`] if a layer is in none or several of them, or cannot share memory as it would
    /// have to.
    pub fn new(specs: &[KvCacheSpec], groups: &[Vec<u32>]) -> Result<Self, GroupError> {
        let num_layers = specs.len();
        let mut places: Vec<Option<LayerPlace>> = vec![None; num_layers];
        let mut counts = vec![0; num_layers];
        let mut owners: Vec<usize> = Vec::new();
        let mut windows = Vec::with_capacity(groups.len());
        for (group, layers) in groups.iter().enumerate() {
            if layers.is_empty() {
                return Err(GroupError::Empty { group });
            }
            // Zero says that nobody has a window yet; a layer that sees everything ends that.
            let mut window = Some(0);
            for (array, &layer) in layers.iter().enumerate() {
                let index = layer as usize;
                let Some(spec) = specs.get(index) else {
                    return Err(GroupError::UnknownLayer {
                        group,
                        layer,
                        num_layers,
                    });
                };
                counts[index] += 1;
                places[index] = Some(LayerPlace { array, group });
                window = window.zip(spec.sliding_window).map(|(a, b)| a.max(b));
                match owners.get(array) {
                    None => owners.push(index),
                    Some(&first) if !same_page(&specs[first], spec) => {
                        return Err(GroupError::Format {
                            first,
                            second: index,
                            array,
                        });
                    }
                    Some(_) => {}
                }
            }
            windows.push(window);
        }
        match counts.iter().position(|count| *count != 1) {
            Some(layer) => Err(GroupError::NotOnce {
                layer,
                count: counts[layer],
            }),
            None => Ok(Self {
                places: places.into_iter().flatten().collect(),
                owners,
                windows,
            }),
        }
    }

    /// By layer: its array, and its group.
    #[must_use]
    pub fn places(&self) -> &[LayerPlace] {
        &self.places
    }

    /// By array: a layer whose format it has.
    #[must_use]
    pub fn owners(&self) -> &[usize] {
        &self.owners
    }

    /// By group: how many keys a query sees at most, its own included; `None` if all.
    ///
    /// Blocks that no query of a step can see may belong to others by then.
    #[must_use]
    pub fn windows(&self) -> &[Option<u32>] {
        &self.windows
    }
}

/// Whether a page of one layer's array can be a page of the other's.
fn same_page(a: &KvCacheSpec, b: &KvCacheSpec) -> bool {
    (a.num_kv_heads, a.head_dim, &a.dtype) == (b.num_kv_heads, b.head_dim, &b.dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By layer: its array and its group. By group: its window.
    type Places = (Vec<(usize, usize)>, Vec<Option<u32>>);

    /// Layers as `(head_dim, window)`.
    fn specs(layers: &[(u32, Option<u32>)]) -> Vec<KvCacheSpec> {
        let spec = |(head_dim, sliding_window): &(u32, Option<u32>)| KvCacheSpec {
            layer_name: String::new(),
            num_kv_heads: 2,
            head_dim: *head_dim,
            dtype: "bfloat16".to_owned(),
            sliding_window: *sliding_window,
        };
        layers.iter().map(spec).collect()
    }

    fn check(layers: &[(u32, Option<u32>)], groups: &[&[u32]], expected: Result<Places, &str>) {
        let groups: Vec<Vec<u32>> = groups.iter().map(|group| group.to_vec()).collect();
        let actual = CacheGroups::new(&specs(layers), &groups);
        let actual = actual.map_err(|error| error.to_string()).map(|groups| {
            let places = groups.places.iter().map(|at| (at.array, at.group));
            (places.collect(), groups.windows)
        });
        match (actual, expected) {
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (actual, expected) => assert_eq!(actual, expected.map_err(str::to_owned)),
        }
    }

    #[test]
    fn layers_of_several_groups_share_arrays() {
        let (full, short) = ((8, None), (8, Some(4)));
        check(
            &[full, full],
            &[&[0, 1]],
            Ok((vec![(0, 0), (1, 0)], vec![None])),
        );
        check(
            &[short, short, full, short],
            &[&[2], &[0, 3], &[1]],
            Ok((
                vec![(0, 1), (0, 2), (0, 0), (1, 1)],
                vec![None, Some(4), Some(4)],
            )),
        );
    }

    #[test]
    fn a_group_sees_as_far_as_the_layer_that_sees_farthest() {
        let layers = [(8, Some(4)), (8, Some(9)), (8, None)];
        check(
            &layers[..2],
            &[&[0, 1]],
            Ok((vec![(0, 0), (1, 0)], vec![Some(9)])),
        );
        let places = vec![(0, 0), (1, 0), (2, 0)];
        check(&layers, &[&[0, 1, 2]], Ok((places, vec![None])));
    }

    #[test]
    fn groups_that_cannot_be_are_refused() {
        let layers = [(8, None), (16, None), (8, Some(4))];
        check(&layers, &[&[0, 1, 2], &[]], Err("group 1 has no layer"));
        check(&layers, &[&[0, 1, 3]], Err("layer 3, the model has 3"));
        check(&layers, &[&[0, 1]], Err("layer 2 must stand in one"));
        check(&layers, &[], Err("layer 0 must stand in one"));
        check(&layers, &[&[0, 1, 2], &[0]], Err("but stands in 2"));
        check(
            &layers,
            &[&[0, 1], &[2, 0]],
            Err("layers 1 and 0 would share memory"),
        );
    }
}
