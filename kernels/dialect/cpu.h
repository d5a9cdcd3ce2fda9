// The dialect as plain C++ that runs: a threadgroup is a ring of fibers on one OS thread, for tests.
// What each word means: README.md beside this file.
//
// A fiber hands over to the next one of its ring at a barrier (all threads) or a lane operation (its
// 32). Every thread of a ring reaches the same ones, so one turn of the ring is a barrier: each has
// come before any goes on.
#pragma once

#include <sys/types.h>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "fiber.h"

// uint and ushort come with <sys/types.h>.
typedef uint64_t word64;
typedef _Float16 half;

struct bf16 {
  ushort bits;
  bf16() = default;
  explicit bf16(float v) {
    uint wide;
    std::memcpy(&wide, &v, 4);
    const bool is_nan = (wide & 0x7fffffffu) > 0x7f800000u;
    bits = ushort(is_nan ? (wide >> 16) | 0x40u : (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
  }
  operator float() const {
    const uint wide = uint(bits) << 16;
    float v;
    std::memcpy(&v, &wide, 4);
    return v;
  }
};

#define UNROLL
#define UNROLL_BY(n)
#define DEV
#define THREAD
#define SHARED static thread_local
#define SHARED_PTR
#define FN static inline
#define IN(T, name, i) const T* name
#define LATE(T, name, i) IN(T, name, i)
#define OUT(T, name, i) T* name
#define VAL(T, name, i) T name
#define KERNEL(NAME, ...) static void NAME(__VA_ARGS__)
#define KERNEL_SIZED(THREADS_, GROUPS_, NAME, ...) KERNEL(NAME, __VA_ARGS__)
#define GROUP_X (Group::current().position[0])
#define GROUP_Y (Group::current().position[1])
#define GROUP_Z (Group::current().position[2])
#define LOCAL (Group::current().thread())
#define THREADS (Group::current().size())

#define START_NEXT()
#define AWAIT_EARLIER()

#define BARRIER() Group::current().barrier()
#define LANE_BARRIER() Group::current().lane_barrier()
#define LANE_SUM(v) lane_fold(v, [](auto a, auto b) { return a + b; })
#define LANE_MAX(v) lane_fold(v, [](auto a, auto b) { return b > a ? b : a; })
#define LANE_XOR(v, mask) lane_xor(v, mask)
#define LANE_FROM(v, lane) lane_from(v, lane)

template <typename T>
T lane_from(T v, int lane) {
  auto& group = Group::current();
  std::memcpy(&group.exchange[group.thread()], &v, sizeof(T));
  group.lane_barrier();
  T other;
  std::memcpy(&other, &group.exchange[group.thread() / 32 * 32 + lane], sizeof(T));
  group.lane_barrier();
  return other;
}
template <typename T>
T lane_xor(T v, int mask) {
  return lane_from(v, Group::current().thread() % 32 ^ mask);
}
template <typename T, typename F>
T lane_fold(T v, F fold) {
  for (int mask = 16; mask > 0; mask /= 2) v = fold(v, lane_xor(v, mask));
  return v;
}

#define EXP(v) std::exp(v)
#define EXP2(v) std::exp2(v)
#define LOG(v) std::log(v)
#define SIN(v) std::sin(v)
#define COS(v) std::cos(v)
#define TANH(v) std::tanh(v)
#define SQRT(v) std::sqrt(v)

template <typename To, typename From>
To as_bits(From v) {
  To out;
  std::memcpy(&out, &v, sizeof(out));
  return out;
}
#define AS_FLOAT(v) as_bits<float>(uint(v))
#define AS_UINT(v) as_bits<uint>(float(v))

typedef uint counter;
#define COUNTER_SET(c, v) ((c) = uint(v))
#define COUNTER_GET(c) (c)
#define COUNTER_ADD(c, v) ((c) += uint(v))

#define stream8 fetch8

template <typename T>
struct Eight {
  T elements[8];
};
template <typename T>
void fetch8(const T* from, Eight<T>& to) {
  std::memcpy(to.elements, from, sizeof(to));
}
template <typename T>
void clear8(Eight<T>& to) {
  for (int i = 0; i < 8; i++) to.elements[i] = T(0.0f);
}
template <typename T>
void unpack8(const Eight<T>& from, float* to) {
  for (int i = 0; i < 8; i++) to[i] = float(from.elements[i]);
}
template <typename T>
void load8(const T* from, float* to) {
  for (int i = 0; i < 8; i++) to[i] = float(from[i]);
}
template <typename T>
void store8(T* to, const float* from) {
  for (int i = 0; i < 8; i++) to[i] = T(from[i]);
}

template <typename T>
void copy8(const T* from, long at, bool exists, T* to) {
  for (int i = 0; i < 8; i++) to[i] = exists ? from[at + i] : T(0.0f);
}
#define copy8_later copy8
#define COPIES_END()
#define COPIES_AWAIT(n)

// 16 x 16 times 16 x 8, in blocks of 8 x 8, of which each lane has two elements of a row (of a
// column of the right side): the layout of CUDA.
#define FRAG_ROW(lane) ((lane) / 4)
#define FRAG_COL(lane) ((lane) % 4 * 2)
#define FRAG_ROW_MASKS {1, 2}
#define B_K(lane, e) (FRAG_COL(lane) + (e))
#define B_N(lane, e) FRAG_ROW(lane)
template <typename T>
struct MatrixA {
  float elements[8];
};
template <typename T>
struct MatrixB {
  float elements[4];
};
template <typename T>
void set_a(MatrixA<T>& a, int row, int k, float first, float second) {
  a.elements[4 * k + 2 * row] = float(T(first));
  a.elements[4 * k + 2 * row + 1] = float(T(second));
}
template <typename T>
void set_b(MatrixB<T>& b, int k, T first, T second) {
  b.elements[2 * k] = float(first);
  b.elements[2 * k + 1] = float(second);
}
// Eight columns of 16 elements, each contiguous in memory of the threadgroup; 16 rows of eight.
template <typename T>
void load_b_columns(MatrixB<T>& b, const T* from, int stride, int lane) {
  for (int k = 0; k < 2; k++) {
    set_b(
        b,
        k,
        from[B_N(lane, 0) * stride + 8 * k + B_K(lane, 0)],
        from[B_N(lane, 1) * stride + 8 * k + B_K(lane, 1)]);
  }
}
template <typename T>
void load_b_rows(MatrixB<T>& b, const T* from, int stride, int lane) {
  for (int k = 0; k < 2; k++) {
    set_b(
        b,
        k,
        from[(8 * k + B_K(lane, 0)) * stride + B_N(lane, 0)],
        from[(8 * k + B_K(lane, 1)) * stride + B_N(lane, 1)]);
  }
}
template <typename T>
void multiply_add_(float* sum, MatrixA<T>& a, MatrixB<T>& b, int elements) {
  auto& group = Group::current();
  const int lane = group.thread() % 32;
  const int first = group.thread() - lane;
  group.left[group.thread()] = a.elements;
  group.right[group.thread()] = b.elements;
  group.lane_barrier();
  for (int e = 0; e < elements; e++) {
    const int row = e / 2;
    const int column = FRAG_COL(lane) + e % 2;
    for (int k = 0; k < 16; k++) {
      const int pair = k % 8 / 2;
      const float* left = group.left[first + FRAG_ROW(lane) * 4 + pair];
      const float* right = group.right[first + column * 4 + pair];
      sum[e] += left[4 * (k / 8) + 2 * row + k % 2] * right[2 * (k / 8) + k % 2];
    }
  }
  group.lane_barrier();
}
template <typename T>
void multiply_add(float* sum, MatrixA<T>& a, MatrixB<T>& b) {
  multiply_add_(sum, a, b, 4);
}
template <typename T>
void multiply_add_top(float* sum, MatrixA<T>& a, MatrixB<T>& b) {
  multiply_add_(sum, a, b, 2);
}
