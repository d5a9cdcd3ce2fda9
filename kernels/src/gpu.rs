//! Kernels of the dialect: one source for Metal, CUDA and, in tests, emulation on the CPU.
//!
//! A kernel is compiled for the words of one [`Launch`] (its dtypes, mostly) the first time that
//! they are seen. `dialect/README.md` says how kernels are written.
//!
//! # Invariants
//! - Launches on one stream run in the order of the graph.
//! - A kernel reads and writes within its arrays whatever their values are: what a host kernel
//!   reports as an error, a GPU's kernel skips.

use std::ffi::{CStr, CString};

use mlx_rs::Array;

use crate::{
    element::FloatType,
    error::Result,
    ffi::{self, Output, Program, RawScalar},
};

/// A source of the dialect, as a string for C.
macro_rules! dialect_source {
    ($path:literal) => {
        // The text has no zero of its own, or this does not compile.
        match ::std::ffi::CStr::from_bytes_with_nul(concat!(include_str!($path), "\0").as_bytes()) {
            Ok(text) => text,
            Err(_) => panic!("a source has a zero in it"),
        }
    };
}
pub(crate) use dialect_source;

const PRELUDE: &CStr = if cfg!(target_os = "macos") {
    dialect_source!("../dialect/metal.h")
} else {
    dialect_source!("../dialect/cuda.h")
};
const COMMON: &CStr = dialect_source!("../dialect/common.h");

/// A constant of a kernel.
pub(crate) type Scalar = RawScalar;

/// One launch of a kernel.
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'static str,
    pub(crate) sources: &'a [&'static CStr],
    /// What the source leaves open, with what it stands for here.
    pub(crate) words: &'a [(&'static str, &'static str)],
    pub(crate) scalars: &'a [Scalar],
    /// Number of threadgroups by axis.
    pub(crate) groups: [i32; 3],
    /// Threads of a threadgroup, a multiple of 32.
    pub(crate) threads: i32,
}

impl Launch<'_> {
    /// Adds it to MLX's graph. The kernel's parameters are the inputs, the outputs with fresh
    /// memory, then the scalars.
    #[track_caller]
    pub(crate) fn add<const N: usize>(
        &self,
        inputs: &[&Array],
        outputs: [Output<'_>; N],
    ) -> Result<[Array; N]> {
        assert!(self.threads > 0 && self.threads % 32 == 0);
        let mut name = self.kernel.to_owned();
        for (_, value) in self.words {
            name.push_str("__");
            name.push_str(value);
        }
        let mut defines = format!("#define NAME {name}\n");
        for (word, value) in self.words {
            defines.push_str("#define ");
            defines.push_str(word);
            defines.push(' ');
            defines.push_str(value);
            defines.push('\n');
        }
        let mut pieces = vec![PRELUDE, COMMON];
        pieces.extend(self.sources);
        let text = |text| CString::new(text).expect("words have no zeros");
        let program = Program {
            name: &text(name),
            defines: &text(defines),
            pieces: &pieces,
            scalars: self.scalars,
            groups: self.groups,
            threads: self.threads,
        };
        // SAFETY: shapes were checked by the kernel's safe face; parity tests run every kernel on
        // its hardest cases, emulated.
        unsafe { ffi::add_launch(&program, inputs, outputs) }
    }
}

/// Whether kernels of the dialect run for the calling thread's default stream.
pub(crate) fn is_chosen() -> Result<bool> {
    match cfg!(feature = "emulation") {
        true => Ok(true),
        false => ffi::is_gpu(),
    }
}

/// The dialect's name of an element type.
pub(crate) fn word(float_type: FloatType) -> &'static str {
    match float_type {
        FloatType::F32 => "float",
        FloatType::F16 => "half",
        FloatType::Bf16 => "bf16",
    }
}

/// Threads for a row of `len` elements: some eight elements each, 32 to 1024 of them.
pub(crate) fn threads_for_row(len: i32) -> i32 {
    (groups_of(len, 256) * 32).clamp(32, 1024)
}

/// How many groups of `size` hold `len` things.
pub(crate) fn groups_of(len: i32, size: i32) -> i32 {
    len / size + i32::from(len % size != 0)
}

/// A size that a kernel takes as an int.
pub(crate) fn int(size: usize) -> i32 {
    i32::try_from(size).expect("sizes of arrays fit an i32")
}
