// The dialect as Metal Shading Language 3.1. What each word means: README.md beside this file.
#include <metal_stdlib>
using namespace metal;

typedef bfloat bf16;
typedef ulong word64;

#define DEV device
#define THREAD thread
#define SHARED threadgroup
#define SHARED_PTR threadgroup
#define FN METAL_FUNC
#define UNROLL _Pragma("unroll")
#define PRAGMA_(text) _Pragma(#text)
#define UNROLL_BY(n) PRAGMA_(unroll n)
#define IN(T, name, i) const device T* name [[buffer(i)]]
#define LATE(T, name, i) IN(T, name, i)
#define OUT(T, name, i) device T* name [[buffer(i)]]
#define VAL(T, name, i) constant T& name [[buffer(i)]]
#define KERNEL(NAME, ...)                                \
  kernel void NAME(                                      \
      __VA_ARGS__,                                       \
      uint3 group_ [[threadgroup_position_in_grid]],     \
      uint3 size_ [[threads_per_threadgroup]],           \
      uint local_ [[thread_index_in_threadgroup]])
#define KERNEL_SIZED(THREADS_, GROUPS_, NAME, ...) \
  [[max_total_threads_per_threadgroup(THREADS_)]] KERNEL(NAME, __VA_ARGS__)
#define GROUP_X int(group_.x)
#define GROUP_Y int(group_.y)
#define GROUP_Z int(group_.z)
#define LOCAL int(local_)
#define THREADS int(size_.x)

// Kernels start when those before them have ended.
#define START_NEXT()
#define AWAIT_EARLIER()

#define BARRIER() threadgroup_barrier(mem_flags::mem_threadgroup)
#define LANE_BARRIER() simdgroup_barrier(mem_flags::mem_threadgroup)
#define LANE_SUM(v) simd_sum(v)
#define LANE_MAX(v) simd_max(v)
#define LANE_XOR(v, mask) simd_shuffle_xor(v, ushort(mask))
#define LANE_FROM(v, lane) simd_shuffle(v, ushort(lane))

#define EXP(v) precise::exp(v)
#define EXP2(v) exp2(v)
#define LOG(v) precise::log(v)
#define SIN(v) precise::sin(v)
#define COS(v) precise::cos(v)
#define TANH(v) precise::tanh(v)
#define SQRT(v) precise::sqrt(v)
#define AS_FLOAT(v) as_type<float>(v)
#define AS_UINT(v) as_type<uint>(v)

typedef atomic_uint counter;
#define COUNTER_SET(c, v) atomic_store_explicit(&(c), uint(v), memory_order_relaxed)
#define COUNTER_GET(c) atomic_load_explicit(&(c), memory_order_relaxed)
#define COUNTER_ADD(c, v) atomic_fetch_add_explicit(&(c), uint(v), memory_order_relaxed)

#define stream8 fetch8

// Eight elements as they are stored.
template <typename T>
struct Eight {
  vec<T, 4> quads[2];
};
template <typename T>
FN void fetch8(const device T* from, thread Eight<T>& to) {
  const device vec<T, 4>* quads = reinterpret_cast<const device vec<T, 4>*>(from);
  to.quads[0] = quads[0];
  to.quads[1] = quads[1];
}
template <typename T>
FN void clear8(thread Eight<T>& to) {
  for (int i = 0; i < 8; i++) {
    to.quads[i / 4][i % 4] = T(0.0f);
  }
}
template <typename T>
FN void unpack8(thread const Eight<T>& from, thread float* to) {
  for (int i = 0; i < 8; i++) {
    to[i] = float(from.quads[i / 4][i % 4]);
  }
}

// Eight elements from and to an address that is a multiple of their size.
template <typename T>
FN void load8(const device T* from, thread float* to) {
  Eight<T> eight;
  fetch8(from, eight);
  unpack8(eight, to);
}
template <typename T>
FN void store8(device T* to, thread const float* from) {
  device vec<T, 4>* quads = reinterpret_cast<device vec<T, 4>*>(to);
  for (int half_ = 0; half_ < 2; half_++) {
    vec<T, 4> quad;
    for (int i = 0; i < 4; i++) {
      quad[i] = T(from[4 * half_ + i]);
    }
    quads[half_] = quad;
  }
}

// Eight elements, or zeros, from an address that is a multiple of their size.
template <typename T>
FN void copy8(const device T* from, long at, bool exists, threadgroup T* to) {
  const device vec<T, 4>* quads = reinterpret_cast<const device vec<T, 4>*>(from + (exists ? at : 0));
  for (int half_ = 0; half_ < 2; half_++) {
    vec<T, 4> quad = quads[half_];
    for (int i = 0; i < 4; i++) {
      to[4 * half_ + i] = exists ? quad[i] : T(0.0f);
    }
  }
}
#define copy8_later copy8
#define COPIES_END()
#define COPIES_AWAIT(n)

// 16 x 16 times 16 x 8, in blocks of 8 x 8, of which each lane has two elements of a row.
#define FRAG_ROW(lane) (((lane) / 4 & 4) + (lane) / 2 % 4)
#define FRAG_COL(lane) (((lane) / 4 & 2) * 2 + (lane) % 2 * 2)
#define FRAG_ROW_MASKS {1, 8}
#define B_K(lane, e) FRAG_ROW(lane)
#define B_N(lane, e) (FRAG_COL(lane) + (e))
template <typename T>
struct MatrixA {
  simdgroup_matrix<float, 8, 8> blocks[4];
};
template <typename T>
struct MatrixB {
  simdgroup_matrix<float, 8, 8> blocks[2];
};
template <typename T>
FN void set_a(thread MatrixA<T>& a, int row, int k, float first, float second) {
  a.blocks[2 * k + row].thread_elements()[0] = float(T(first));
  a.blocks[2 * k + row].thread_elements()[1] = float(T(second));
}
template <typename T>
FN void set_b(thread MatrixB<T>& b, int k, T first, T second) {
  b.blocks[k].thread_elements()[0] = float(first);
  b.blocks[k].thread_elements()[1] = float(second);
}
// Eight columns of 16 elements, each contiguous in memory of the threadgroup; 16 rows of eight.
template <typename T>
FN void load_b_columns(thread MatrixB<T>& b, const threadgroup T* from, int stride, int lane) {
  for (int k = 0; k < 2; k++) {
    set_b(
        b,
        k,
        from[B_N(lane, 0) * stride + 8 * k + B_K(lane, 0)],
        from[B_N(lane, 1) * stride + 8 * k + B_K(lane, 1)]);
  }
}
template <typename T>
FN void load_b_rows(thread MatrixB<T>& b, const threadgroup T* from, int stride, int lane) {
  for (int k = 0; k < 2; k++) {
    set_b(
        b,
        k,
        from[(8 * k + B_K(lane, 0)) * stride + B_N(lane, 0)],
        from[(8 * k + B_K(lane, 1)) * stride + B_N(lane, 1)]);
  }
}
template <typename T>
FN void multiply_add_rows_(
    thread float* sum, thread MatrixA<T>& a, thread MatrixB<T>& b, int row) {
  simdgroup_matrix<float, 8, 8> c;
  c.thread_elements()[0] = sum[0];
  c.thread_elements()[1] = sum[1];
  for (int k = 0; k < 2; k++) {
    simdgroup_multiply_accumulate(c, a.blocks[2 * k + row], b.blocks[k], c);
  }
  sum[0] = c.thread_elements()[0];
  sum[1] = c.thread_elements()[1];
}
template <typename T>
FN void multiply_add(thread float* sum, thread MatrixA<T>& a, thread MatrixB<T>& b) {
  multiply_add_rows_(sum, a, b, 0);
  multiply_add_rows_(sum + 2, a, b, 1);
}
template <typename T>
FN void multiply_add_top(thread float* sum, thread MatrixA<T>& a, thread MatrixB<T>& b) {
  multiply_add_rows_(sum, a, b, 0);
}
