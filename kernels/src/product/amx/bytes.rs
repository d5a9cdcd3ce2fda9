//! Tiles of bytes: unsigned weights, signed columns, exact sums in i32.

use std::{arch::asm, marker::PhantomData};

use super::{COLUMNS, Config, OUTPUTS, release};

/// Tile registers of this thread, set up for a number of columns and of inputs. As
/// [`Unit`](super::Unit).
pub(in crate::product) struct ByteUnit {
    columns: usize,
    /// Of a tile: 32 or 64.
    inputs: usize,
    /// Registers belong to a thread.
    not_send: PhantomData<*const ()>,
}

/// What is multiplied. All of it is readable.
pub(in crate::product) struct ByteOperands {
    /// A tile of weights.
    pub(in crate::product) weights: *const u8,
    /// Of weights: from one output to the next.
    pub(in crate::product) row_size_bytes: usize,
    /// Two tiles of columns, `[steps, inputs / 4, columns, 4]`.
    pub(in crate::product) x: [*const u8; 2],
    pub(in crate::product) steps: usize,
}

impl ByteUnit {
    /// # Panics
    /// If there are no columns or too many.
    ///
    /// # Safety
    /// [`is_available`](super::is_available), and this thread has no other unit.
    pub(in crate::product) unsafe fn new(columns: usize, inputs: usize) -> Self {
        let unit = Self {
            columns,
            inputs,
            not_send: PhantomData,
        };
        unit.configure();
        unit
    }

    /// Sets the registers up for another number of columns.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub(in crate::product) fn set_columns(&mut self, columns: usize) {
        if self.columns != columns {
            self.columns = columns;
            self.configure();
        }
    }

    fn configure(&self) {
        assert!((1..=COLUMNS).contains(&self.columns));
        assert!(self.inputs == 32 || self.inputs == 64);
        let columns = u16::try_from(4 * self.columns).expect("at most 64");
        let inputs = u16::try_from(self.inputs).expect("at most 64");
        let fours = u8::try_from(self.inputs / 4).expect("at most 16");
        let outputs = u8::try_from(OUTPUTS).expect("sixteen");
        let mut row_size_bytes = [0; 16];
        let mut rows = [0; 16];
        // Sums, weights, columns.
        row_size_bytes[..4].fill(columns);
        rows[..4].fill(outputs);
        row_size_bytes[4..6].fill(inputs);
        rows[4..6].fill(outputs);
        row_size_bytes[6..8].fill(columns);
        rows[6..8].fill(fours);
        // SAFETY: a valid configuration; whoever made the unit has promised that there is one.
        unsafe { Config::new(row_size_bytes, rows).load() };
    }

    /// Multiplies weights with two tiles of columns. The sums stay in the unit until they are
    /// [stored](Self::store) or there are others.
    ///
    /// # Safety
    /// As [`ByteOperands`] says.
    #[inline(always)]
    pub(in crate::product) unsafe fn multiply(&self, operands: &ByteOperands) {
        // SAFETY: the caller's promise. Tile registers are this unit's.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "2:",
                "tileloadd tmm4, [{w} + {w_row}]",
                "tileloadd tmm6, [{x0} + {x_row}]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{x1} + {x_row}]",
                "tdpbusd tmm1, tmm4, tmm7",
                "add {w}, {inputs}",
                "add {x0}, {x_tile}",
                "add {x1}, {x_tile}",
                "dec {n}",
                "jnz 2b",
                w = inout(reg) operands.weights => _,
                w_row = in(reg) operands.row_size_bytes,
                x0 = inout(reg) operands.x[0] => _,
                x1 = inout(reg) operands.x[1] => _,
                x_row = in(reg) 4 * self.columns,
                x_tile = in(reg) self.columns * self.inputs,
                inputs = in(reg) self.inputs,
                n = inout(reg) operands.steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Stores `sums[p]`, weights times tile `p` of columns, `[16, 16]` each, rows of 64 bytes. That
    /// this is not done at once leaves a thread something to do until they are there.
    ///
    /// # Safety
    /// `sums` has room for two tiles.
    #[inline(always)]
    pub(in crate::product) unsafe fn store(&self, sums: *mut u8) {
        // SAFETY: the caller's promise. Tile registers are this unit's; no compiler uses them, so
        // they hold what `multiply` has left there.
        unsafe {
            asm!(
                "tilestored [{sums} + {sums_row}], tmm0",
                "tilestored [{sums} + {sums_row} + 1024], tmm1",
                sums = in(reg) sums,
                sums_row = in(reg) 64_usize,
                options(nostack),
            );
        }
    }
}

impl Drop for ByteUnit {
    fn drop(&mut self) {
        // SAFETY: the registers are this unit's, and it is no more.
        unsafe { release() };
    }
}
