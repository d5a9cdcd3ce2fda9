//! Memory: what a session may use for its cache, and the cache itself.

use metal_rpc_kernels::footprint_bytes;
use metal_rpc_protocol::{
    CacheCreated, CreateCache, ErrorCode, ErrorReply, KvCacheSpec, LoadModel, MemoryReserved,
    Reply, ReserveMemory,
};
use tracing::info;

use super::Engine;
use super::control::{out_of_order, refusal};
use crate::device::Device;
use crate::kv_cache::{BlockMap, BlockPool, CacheGroups, KvCache};
use crate::limits::RESERVE_MARGIN;
use crate::models::loaded::{LoadedModel, ModelCache};
use crate::session::block_tables::TableRules;
use crate::session::state::{SeedSource, SessionLimits};
use crate::session::{Session, SessionCache, SessionId, TokenTable};

impl Engine {
    pub(super) fn reserve_memory(
        &mut self,
        id: SessionId,
        reserve: &ReserveMemory,
    ) -> Result<Reply, ErrorReply> {
        if self.session(id).model.is_none() {
            return Err(out_of_order("ReserveMemory", "LoadModel"));
        }
        if self.session(id).cache.is_some() {
            return Err(refusal(
                ErrorCode::OutOfOrder,
                "the cache exists already".to_owned(),
            ));
        }
        let weights_bytes = self
            .models
            .values()
            .map(|loaded| loaded.model.weights_bytes())
            .sum();
        let others: Vec<(&str, u64)> = self
            .sessions
            .iter()
            .filter(|(other, session)| **other != id && session.reserved_bytes > 0)
            .map(|(_, session)| (session.frontend.as_str(), session.reserved_bytes))
            .collect();
        let available_bytes = self
            .config
            .memory
            .available(reserve.memory_fraction, weights_bytes, &others)
            .map_err(|error| refusal(ErrorCode::OutOfMemory, error.to_string()))?;
        let left_bytes = self.left_bytes(Some(id))?;
        let available_bytes = available_bytes.min(left_bytes);
        self.session(id).reserved_bytes = available_bytes;
        // Not all of it: the next daemon, which itself takes a little more or less than this one,
        // must be able to give the frontend the same cache again.
        let available_bytes = available_bytes - available_bytes / RESERVE_MARGIN;
        Ok(Reply::MemoryReserved(MemoryReserved { available_bytes }))
    }

    /// What the daemon may still give away before the system swaps, other sessions than `id` only
    /// counted.
    ///
    /// # Errors
    /// `OutOfMemory` if that is nothing.
    pub(super) fn left_bytes(&self, id: Option<SessionId>) -> Result<u64, ErrorReply> {
        let unwritten = |(other, session): (&SessionId, &Session)| {
            let is_counted = Some(*other) != id;
            let written = self.written_bytes(session);
            is_counted.then(|| session.reserved_bytes.saturating_sub(written))
        };
        let unwritten_bytes = self.sessions.iter().filter_map(unwritten).sum();
        // A system that does not say cannot be watched.
        let footprint_bytes = footprint_bytes().unwrap_or(0);
        let left = self.config.memory.left(footprint_bytes, unwritten_bytes);
        left.map_err(|error| refusal(ErrorCode::OutOfMemory, error.to_string()))
    }

    /// Bytes of the blocks that hold something.
    fn written_bytes(&self, session: &Session) -> u64 {
        let model = session.model.as_ref().and_then(|key| self.models.get(key));
        let shared = model.and_then(|model| model.cache.as_ref());
        match (shared, &session.cache) {
            (Some(shared), Some(own)) => u64::from(own.block_map.num_used()) * shared.block_bytes,
            _ => 0,
        }
    }

    /// Bytes that the pool of one more model may have. A CPU's are address space, a GPU's are taken
    /// at once, from what weights and other pools leave.
    fn pool_bytes(&self) -> u64 {
        let limit_bytes = self.config.memory.limit_bytes;
        let taken = |loaded: &LoadedModel| {
            let pool = |cache: &ModelCache| cache.block_bytes * u64::from(cache.pool.num_blocks());
            loaded.model.weights_bytes() + loaded.cache.as_ref().map_or(0, pool)
        };
        match self.config.device {
            Device::Cpu => limit_bytes,
            Device::Gpu => limit_bytes.saturating_sub(self.models.values().map(taken).sum()),
        }
    }

    pub(super) fn create_cache(
        &mut self,
        id: SessionId,
        create: &CreateCache,
    ) -> Result<Reply, ErrorReply> {
        let pool_bytes = self.pool_bytes();
        let session = self.sessions.get_mut(&id).expect("`handle` has looked");
        let (Some(key), Some(load)) = (&session.model, &session.load) else {
            return Err(out_of_order("CreateCache", "LoadModel"));
        };
        if session.cache.is_some() {
            return Err(refusal(
                ErrorCode::OutOfOrder,
                "CreateCache is legal once".to_owned(),
            ));
        }
        let loaded = self.models.get_mut(key).expect("a session keeps its model");
        check_sizes(create)?;
        let specs = loaded.model.kv_cache_specs();
        let groups = CacheGroups::new(&specs, &create.groups)
            .map_err(|error| refusal(ErrorCode::Unsupported, error.to_string()))?;
        let cache = match &mut loaded.cache {
            Some(cache) => cache,
            none => none.insert(new_cache(
                &specs,
                groups.clone(),
                create.block_size,
                pool_bytes,
            )?),
        };
        if *cache.kv.groups() != groups {
            let message = "layers must be grouped as the other frontends of this model do; does one \
                           of them run with --disable-hybrid-kv-cache-manager?";
            return Err(refusal(ErrorCode::Unsupported, message.to_owned()));
        }
        if cache.block_size != create.block_size {
            let message = format!(
                "block size must be {}, as the other frontends of this model have it, but is {}",
                cache.block_size, create.block_size
            );
            return Err(refusal(ErrorCode::Unsupported, message));
        }
        let granted_bytes = cache.block_bytes * u64::from(create.num_blocks);
        if granted_bytes > session.reserved_bytes {
            let message = format!(
                "{} blocks of {} bytes are more than the {} bytes reserved for this session",
                create.num_blocks, cache.block_bytes, session.reserved_bytes
            );
            return Err(refusal(ErrorCode::OutOfMemory, message));
        }
        session.reserved_bytes = granted_bytes;
        let windows = groups.windows().to_vec();
        let vocab_size = loaded.model.vocab_size();
        session.cache = Some(session_cache(load, create, (vocab_size, windows))?);
        let (num_blocks, block_bytes) = (create.num_blocks, cache.block_bytes);
        info!(
            frontend = session.frontend,
            num_blocks, block_bytes, "cache created"
        );
        Ok(Reply::CacheCreated(CacheCreated {
            num_blocks,
            block_bytes,
        }))
    }
}

fn check_sizes(create: &CreateCache) -> Result<(), ErrorReply> {
    if create.num_blocks < 2 || create.block_size == 0 || create.block_size > 1024 {
        let message = format!(
            "a cache needs 2 or more blocks of 1 to 1024 tokens, not {} of {}",
            create.num_blocks, create.block_size
        );
        return Err(refusal(ErrorCode::BadMessage, message));
    }
    Ok(())
}

/// Reserves room for as many blocks as the daemon may ever use for this model.
fn new_cache(
    specs: &[KvCacheSpec],
    groups: CacheGroups,
    block_size: u32,
    pool_bytes: u64,
) -> Result<ModelCache, ErrorReply> {
    let block_bytes = KvCache::token_bytes(specs, &groups) * u64::from(block_size);
    // Slots are i32 on the device.
    let most_blocks = u64::from(i32::MAX.unsigned_abs() / block_size);
    let num_blocks = (pool_bytes / block_bytes).clamp(2, most_blocks);
    let num_blocks = u32::try_from(num_blocks).expect("clamped");
    let kv = KvCache::reserve(specs, groups, [num_blocks, block_size])
        .map_err(|error| refusal(ErrorCode::OutOfMemory, error.to_string()))?;
    Ok(ModelCache {
        kv,
        pool: BlockPool::new(num_blocks),
        block_size,
        block_bytes,
    })
}

fn session_cache(
    load: &LoadModel,
    create: &CreateCache,
    (vocab_size, windows): (u32, Vec<Option<u32>>),
) -> Result<SessionCache, ErrorReply> {
    // A finished request may keep its handle until the step that opens its successor was built.
    let num_handles = 2 * load.max_num_seqs;
    // The token that a step samples comes after the known ones, also when vLLM throws it away.
    let row_len = load.max_model_len + 2;
    let token_table = TokenTable::reserve(num_handles, row_len)
        .map_err(|error| refusal(ErrorCode::OutOfMemory, error.to_string()))?;
    Ok(SessionCache {
        limits: SessionLimits {
            max_model_len: load.max_model_len,
            max_num_seqs: load.max_num_seqs,
            max_num_batched_tokens: load.max_num_batched_tokens,
            vocab_size,
        },
        table_rules: TableRules {
            block_size: create.block_size,
            windows,
            most_blocks: row_len.div_ceil(create.block_size) as usize,
        },
        block_map: BlockMap::new(create.num_blocks),
        requests: (0..num_handles).map(|_| None).collect(),
        token_table,
        seeds: SeedSource::from_clock(),
    })
}
