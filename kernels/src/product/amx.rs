//! Intel's matrix unit (AMX): tiles of bf16, sums in f32.
//!
//! A tile register has 16 rows of 64 bytes. One instruction multiplies a tile of weights, 16 outputs
//! by 32 inputs as they stand in memory, with a tile of up to 16 columns of 32 inputs, and adds the
//! products to a tile of sums, `[16 outputs, columns]`.
//!
//! # Invariants
//! A sum's bits depend on its own output and its own column alone: in a step, the 32 products are
//! added up from zero in ascending order, and the result is added to the sum.

mod bytes;
mod probe;

use std::{arch::asm, marker::PhantomData, sync::OnceLock};

pub(super) use self::bytes::{ByteOperands, ByteUnit};

/// Outputs of a tile.
pub(super) const OUTPUTS: usize = 16;

/// Inputs of a tile: one step.
pub(super) const INPUTS: usize = 32;

/// Columns of a tile, at most.
pub(super) const COLUMNS: usize = 16;

/// Bytes of a whole tile.
pub(super) const TILE_SIZE_BYTES: usize = 1024;

/// Tiles of outputs that are multiplied together.
pub(super) const PAIR: usize = 2;

/// Whether this process can use the unit. Found out once.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(probe::is_usable)
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_size_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// Bytes of a row, and rows, of each register.
    fn new(row_size_bytes: [u16; 16], rows: [u8; 16]) -> Self {
        Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_size_bytes,
            rows,
        }
    }

    /// Sets the registers of this thread up.
    ///
    /// # Safety
    /// The configuration is valid, and there is a unit.
    unsafe fn load(&self) {
        // SAFETY: the caller's promise.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const *self, options(nostack, readonly)) };
    }
}

/// Gives the registers of this thread back, so that the system does not save them any longer.
///
/// # Safety
/// There is a unit.
unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Tile registers of this thread, set up for a number of columns. Given back on drop, so that the
/// system does not save them any longer.
pub(super) struct Unit {
    columns: usize,
    /// Registers belong to a thread.
    not_send: PhantomData<*const ()>,
}

impl Unit {
    /// # Panics
    /// If there are no columns or too many.
    ///
    /// # Safety
    /// [`is_available`], and this thread has no other unit.
    pub(super) unsafe fn new(columns: usize) -> Self {
        let unit = Self {
            columns,
            not_send: PhantomData,
        };
        unit.configure();
        unit
    }

    /// Sets the registers up for another number of columns.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub(super) fn set_columns(&mut self, columns: usize) {
        if self.columns != columns {
            self.columns = columns;
            self.configure();
        }
    }

    fn configure(&self) {
        assert!((1..=COLUMNS).contains(&self.columns));
        let columns = u16::try_from(4 * self.columns).expect("at most 64");
        let mut row_size_bytes = [0; 16];
        row_size_bytes[..8].fill(columns);
        // Weights.
        row_size_bytes[6] = 64;
        let mut rows = [0; 16];
        rows[..8].fill(16);
        // SAFETY: a valid configuration; whoever made the unit has promised that there is one.
        unsafe { Config::new(row_size_bytes, rows).load() };
    }

    /// `sums[a]` = weights of tile `a` times one tile of columns; sums are `[16, 16]` each.
    ///
    /// # Safety
    /// As [`Operands`] says; `sums` has room for two tiles.
    pub(super) unsafe fn one(&self, operands: &Operands, sums: *mut f32) {
        // SAFETY: the caller's promise. Tile registers are this unit's.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "test {n}, {n}",
                "jz 3f",
                "2:",
                "tileloadd tmm7, [{x} + {x_row}]",
                "tileloadd tmm6, [{w0} + {w_row}]",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "tileloadd tmm6, [{w1} + {w_row}]",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "add {w0}, {w_step}",
                "add {w1}, {w_step}",
                "add {x}, {x_tile}",
                ".irp line, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960",
                "prefetcht1 [{next} + \\line]",
                "prefetcht1 [{next} + 1024 + \\line]",
                ".endr",
                "add {next}, {next_step}",
                "dec {n}",
                "jnz 2b",
                "3:",
                "tilestored [{sums} + {sums_row}], tmm0",
                "tilestored [{sums} + {sums_row} + 1024], tmm1",
                w0 = inout(reg) operands.weights[0] => _,
                w1 = inout(reg) operands.weights[1] => _,
                w_row = in(reg) operands.row_size_bytes,
                w_step = in(reg) operands.step_size_bytes,
                x = inout(reg) operands.x => _,
                x_row = in(reg) 4 * self.columns,
                x_tile = in(reg) 4 * self.columns * OUTPUTS,
                n = inout(reg) operands.steps => _,
                next = inout(reg) operands.next => _,
                next_step = in(reg) operands.next_step_size_bytes,
                sums = in(reg) sums,
                sums_row = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// `sums[a][p]` = weights of tile `a` times tile `p` of three; sums are `[16, 16]` each.
    ///
    /// # Safety
    /// As [`Operands`] says; `sums` has room for six tiles.
    pub(super) unsafe fn three(&self, operands: &Operands, sums: *mut f32) {
        // SAFETY: the caller's promise. Tile registers are this unit's.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "test {n}, {n}",
                "jz 3f",
                "2:",
                "tileloadd tmm6, [{w0} + {w_row}]",
                "tileloadd tmm7, [{x} + {x_row}]",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "add {x}, {x_tile}",
                "tileloadd tmm7, [{x} + {x_row}]",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "add {x}, {x_tile}",
                "tileloadd tmm7, [{x} + {x_row}]",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "tileloadd tmm6, [{w1} + {w_row}]",
                "tdpbf16ps tmm5, tmm6, tmm7",
                "sub {x}, {x_tile}",
                "tileloadd tmm7, [{x} + {x_row}]",
                "tdpbf16ps tmm4, tmm6, tmm7",
                "sub {x}, {x_tile}",
                "tileloadd tmm7, [{x} + {x_row}]",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "lea {x}, [{x} + 2*{x_tile}]",
                "add {x}, {x_tile}",
                "add {w0}, {w_step}",
                "add {w1}, {w_step}",
                ".irp line, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960",
                "prefetcht1 [{next} + \\line]",
                "prefetcht1 [{next} + 1024 + \\line]",
                ".endr",
                "add {next}, {next_step}",
                "dec {n}",
                "jnz 2b",
                "3:",
                "tilestored [{sums} + {sums_row}], tmm0",
                "tilestored [{sums} + {sums_row} + 1024], tmm1",
                "tilestored [{sums} + {sums_row} + 2048], tmm2",
                "tilestored [{sums} + {sums_row} + 3072], tmm3",
                "tilestored [{sums} + {sums_row} + 4096], tmm4",
                "tilestored [{sums} + {sums_row} + 5120], tmm5",
                w0 = inout(reg) operands.weights[0] => _,
                w1 = inout(reg) operands.weights[1] => _,
                w_row = in(reg) operands.row_size_bytes,
                w_step = in(reg) operands.step_size_bytes,
                x = inout(reg) operands.x => _,
                x_row = in(reg) 4 * self.columns,
                x_tile = in(reg) 4 * self.columns * OUTPUTS,
                n = inout(reg) operands.steps => _,
                next = inout(reg) operands.next => _,
                next_step = in(reg) operands.next_step_size_bytes,
                sums = in(reg) sums,
                sums_row = in(reg) 64_usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: the registers are this unit's, and it is no more.
        unsafe { release() };
    }
}

/// What is multiplied. All of it is readable.
pub(super) struct Operands {
    /// Two tiles of weights, `steps` tiles of each along the inputs.
    pub(super) weights: [*const u16; PAIR],
    /// Of weights: from one output to the next.
    pub(super) row_size_bytes: usize,
    /// Of weights: from one step to the next.
    pub(super) step_size_bytes: usize,
    /// `[steps, tiles, 16 pairs of inputs, columns, 2]`.
    pub(super) x: *const u16,
    pub(super) steps: usize,
    /// Asked for meanwhile, two kilobytes a step; it need not exist.
    pub(super) next: *const u16,
    /// As far as it goes on from step to step.
    pub(super) next_step_size_bytes: usize,
}
