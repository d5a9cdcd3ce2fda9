// The dialect as CUDA C++, without any header of the toolkit: nvrtc compiles it as it stands.
// What each word means: README.md beside this file.
#if defined(__clang__)
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define CUDA_FORCE_INLINE inline __attribute__((always_inline))
#else
#define CUDA_FORCE_INLINE __forceinline__
#endif
#define FN __device__ CUDA_FORCE_INLINE

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned long long word64;

struct half {
  ushort bits;
  half() = default;
  FN explicit half(float v) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  }
  FN operator float() const {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
  }
};

struct bf16 {
  ushort bits;
  bf16() = default;
  FN explicit bf16(float v) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  }
  FN operator float() const {
    uint wide = uint(bits) << 16;
    float v;
    asm("mov.b32 %0, %1;" : "=f"(v) : "r"(wide));
    return v;
  }
};

#define UNROLL _Pragma("unroll")
#define PRAGMA_(text) _Pragma(#text)
#define UNROLL_BY(n) PRAGMA_(unroll n)
#define INFINITY as_float_(0x7f800000u)
#define DEV
#define THREAD
#define SHARED __shared__
#define SHARED_PTR
#define IN(T, name, i) const T* __restrict__ name
// The compiler would read what is restricted before AWAIT_EARLIER, too.
#define LATE(T, name, i) const T* name
#define OUT(T, name, i) T* name
#define VAL(T, name, i) const T name
#define KERNEL(NAME, ...) extern "C" __global__ void NAME(__VA_ARGS__)
#define KERNEL_SIZED(THREADS_, GROUPS_, NAME, ...) \
  extern "C" __global__ void __launch_bounds__(THREADS_, GROUPS_) NAME(__VA_ARGS__)

FN uint special_(int which) {
  uint v = 0;
  if (which == 0) asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(v));
  if (which == 1) asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(v));
  if (which == 2) asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(v));
  if (which == 3) asm volatile("mov.u32 %0, %%tid.x;" : "=r"(v));
  if (which == 4) asm volatile("mov.u32 %0, %%ntid.x;" : "=r"(v));
  return v;
}
#define GROUP_X int(special_(0))
#define GROUP_Y int(special_(1))
#define GROUP_Z int(special_(2))
#define LOCAL int(special_(3))
#define THREADS int(special_(4))

#if __CUDA_ARCH__ >= 900
#define START_NEXT() asm volatile("griddepcontrol.launch_dependents;" ::: "memory")
#define AWAIT_EARLIER() asm volatile("griddepcontrol.wait;" ::: "memory")
#else
#define START_NEXT()
#define AWAIT_EARLIER()
#endif

#define BARRIER() asm volatile("bar.sync 0;" ::: "memory")
#define LANE_BARRIER() asm volatile("bar.warp.sync 0xffffffff;" ::: "memory")

FN float lane_xor_(float v, int mask) {
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;"
               : "=f"(other)
               : "f"(v), "r"(mask));
  return other;
}
FN int lane_xor_(int v, int mask) {
  int other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;"
               : "=r"(other)
               : "r"(v), "r"(mask));
  return other;
}
template <typename T>
FN T lane_sum_(T v) {
  for (int mask = 16; mask > 0; mask /= 2) v += lane_xor_(v, mask);
  return v;
}
template <typename T>
FN T lane_max_(T v) {
  for (int mask = 16; mask > 0; mask /= 2) {
    T other = lane_xor_(v, mask);
    v = other > v ? other : v;
  }
  return v;
}
#define LANE_SUM(v) lane_sum_(v)
#define LANE_MAX(v) lane_max_(v)
#define LANE_XOR(v, mask) lane_xor_(v, mask)
FN float lane_from_(float v, int lane) {
  float other;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;"
               : "=f"(other)
               : "f"(v), "r"(lane));
  return other;
}
#define LANE_FROM(v, lane) lane_from_(v, lane)

#if defined(__clang__)
extern "C" __device__ float expf(float);
extern "C" __device__ float logf(float);
extern "C" __device__ float sinf(float);
extern "C" __device__ float cosf(float);
extern "C" __device__ float tanhf(float);
extern "C" __device__ float sqrtf(float);
#endif
#define EXP(v) expf(v)
#define EXP2(v) exp2_(v)
#define LOG(v) logf(v)
#define SIN(v) sinf(v)
#define COS(v) cosf(v)
#define TANH(v) tanhf(v)
#define SQRT(v) sqrtf(v)

// Within two units in the last place, and zero far below it.
FN float exp2_(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
FN float as_float_(uint v) {
  float out;
  asm("mov.b32 %0, %1;" : "=f"(out) : "r"(v));
  return out;
}
FN uint as_uint_(float v) {
  uint out;
  asm("mov.b32 %0, %1;" : "=r"(out) : "f"(v));
  return out;
}
#define AS_FLOAT(v) as_float_(v)
#define AS_UINT(v) as_uint_(v)

typedef uint counter;
FN uint counter_add_(uint* c, uint v) {
  uint old;
  word64 address;
  asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(c));
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(v) : "memory");
  return old;
}
#define COUNTER_SET(c, v) ((c) = uint(v))
#define COUNTER_GET(c) (*(volatile uint*)&(c))
#define COUNTER_ADD(c, v) counter_add_(&(c), uint(v))

struct alignas(16) words4_ {
  uint w[4];
};
// Eight elements as they are stored.
template <typename T>
struct Eight {
  words4_ words[sizeof(T) / 2];
};
template <typename T>
FN void fetch8(const T* from, Eight<T>& to) {
  for (int i = 0; i < int(sizeof(T) / 2); i++) {
    to.words[i] = reinterpret_cast<const words4_*>(from)[i];
  }
}
template <typename T>
FN void stream8(const T* from, Eight<T>& to) {
  for (int i = 0; i < int(sizeof(T) / 2); i++) {
    uint* w = to.words[i].w;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
        : "l"(reinterpret_cast<const words4_*>(from) + i));
  }
}
template <typename T>
FN void clear8(Eight<T>& to) {
  for (int i = 0; i < int(sizeof(T) / 2); i++) to.words[i] = {};
}
FN void unpack8(const Eight<float>& from, float* to) {
  for (int i = 0; i < 8; i++) to[i] = as_float_(from.words[i / 4].w[i % 4]);
}
FN void unpack8(const Eight<bf16>& from, float* to) {
  for (int i = 0; i < 4; i++) {
    to[2 * i] = as_float_(from.words[0].w[i] << 16);
    to[2 * i + 1] = as_float_(from.words[0].w[i] & 0xffff0000u);
  }
}
FN void unpack8(const Eight<half>& from, float* to) {
  for (int i = 0; i < 4; i++) {
    half low, high;
    low.bits = ushort(from.words[0].w[i] & 0xffffu);
    high.bits = ushort(from.words[0].w[i] >> 16);
    to[2 * i] = float(low);
    to[2 * i + 1] = float(high);
  }
}
template <typename T>
FN void load8(const T* from, float* to) {
  Eight<T> eight;
  fetch8(from, eight);
  unpack8(eight, to);
}
FN void store8(float* to, const float* from) {
  for (int i = 0; i < 2; i++) {
    words4_ words;
    for (int j = 0; j < 4; j++) words.w[j] = as_uint_(from[4 * i + j]);
    reinterpret_cast<words4_*>(to)[i] = words;
  }
}
template <typename T>
FN void store8(T* to, const float* from) {
  words4_ words;
  for (int i = 0; i < 4; i++) {
    words.w[i] = uint(T(from[2 * i]).bits) | uint(T(from[2 * i + 1]).bits) << 16;
  }
  *reinterpret_cast<words4_*>(to) = words;
}

// Eight elements of two bytes, or zeros, from an address that is a multiple of their size.
template <typename T>
FN void copy8(const T* from, long at, bool exists, T* to) {
  words4_ words = {};
  if (exists) words = *reinterpret_cast<const words4_*>(from + at);
  *reinterpret_cast<words4_*>(to) = words;
}
// The same, in no hurry.
template <typename T>
FN void copy8_later(const T* from, long at, bool exists, T* to) {
  word64 address;
  asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "l"(address), "l"(from + (exists ? at : 0)), "r"(exists ? 16 : 0)
               : "memory");
}
#define COPIES_END() asm volatile("cp.async.commit_group;" ::: "memory")
#define COPIES_AWAIT(n) asm volatile("cp.async.wait_group %0;" : : "n"(n) : "memory")

// 16 x 16 times 16 x 8, in blocks of 8 x 8, of which each lane has two elements of a row (of a
// column of the right side).
#define FRAG_ROW(lane) ((lane) / 4)
#define FRAG_COL(lane) ((lane) % 4 * 2)
#define FRAG_ROW_MASKS {1, 2}
template <typename T>
struct MatrixA {
  uint pairs[4];
};
template <typename T>
struct MatrixB {
  uint pairs[2];
};
FN void set_a(MatrixA<bf16>& a, int row, int k, float first, float second) {
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(a.pairs[2 * k + row]) : "f"(second), "f"(first));
}
FN void set_a(MatrixA<half>& a, int row, int k, float first, float second) {
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(a.pairs[2 * k + row]) : "f"(second), "f"(first));
}
// Eight columns of 16 elements, each contiguous in memory of the threadgroup; 16 rows of eight.
template <typename T>
FN void load_b_columns(MatrixB<T>& b, const T* from, int stride, int lane) {
  const T* at = from + lane / 4 * stride + lane % 4 * 2;
  b.pairs[0] = *reinterpret_cast<const uint*>(at);
  b.pairs[1] = *reinterpret_cast<const uint*>(at + 8);
}
template <typename T>
FN void load_b_rows(MatrixB<T>& b, const T* from, int stride, int lane) {
  word64 address;
  asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(from + lane % 16 * stride));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(b.pairs[0]), "=r"(b.pairs[1])
               : "l"(address)
               : "memory");
}
#define MULTIPLY_ADD(T, TYPE)                                                     \
  FN void multiply_add(float* sum, MatrixA<T>& a, MatrixB<T>& b) {                \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "   \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])         \
                 : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]), \
                   "r"(b.pairs[0]), "r"(b.pairs[1]));                             \
  }                                                                               \
  FN void multiply_add_top(float* sum, MatrixA<T>& a, MatrixB<T>& b) {            \
    asm volatile("{ .reg .f32 none, zero; mov.f32 zero, 0f00000000;\n"            \
                 "mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "   \
                 "{%0, %1, none, none}, {%2, %3, %4, %3}, {%5, %6}, {%0, %1, zero, zero}; }" \
                 : "+f"(sum[0]), "+f"(sum[1])                                     \
                 : "r"(a.pairs[0]), "r"(0), "r"(a.pairs[2]), "r"(b.pairs[0]),     \
                   "r"(b.pairs[1]));                                              \
  }
MULTIPLY_ADD(bf16, "bf16")
MULTIPLY_ADD(half, "f16")
