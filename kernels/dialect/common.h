// What kernels share, in the dialect's own words.

// Sum of one value of each thread, for every thread. `part`: 32 floats of the threadgroup.
FN float group_sum(float v, SHARED_PTR float* part, int number, int threads) {
  v = LANE_SUM(v);
  if (threads == 32) {
    return v;
  }
  BARRIER();
  if (number % 32 == 0) {
    part[number / 32] = v;
  }
  BARRIER();
  return LANE_SUM(number % 32 < threads / 32 ? part[number % 32] : 0.0f);
}

// The greatest value of all threads, for every thread. `part`: as for `group_sum`.
FN float group_max(float v, SHARED_PTR float* part, int number, int threads) {
  v = LANE_MAX(v);
  if (threads == 32) {
    return v;
  }
  BARRIER();
  if (number % 32 == 0) {
    part[number / 32] = v;
  }
  BARRIER();
  return LANE_MAX(number % 32 < threads / 32 ? part[number % 32] : v);
}

// Eight elements of a row of `len` from the element `i` on, zeros beyond its end. `is_whole`: the
// length is a multiple of eight, and so is the row's beginning.
template <typename T>
FN void load_row8(const DEV T* row, int i, int len, bool is_whole, THREAD float* to) {
  if (is_whole) {
    load8(row + i, to);
  } else {
    UNROLL for (int e = 0; e < 8; e++) {
      to[e] = i + e < len ? float(row[i + e]) : 0;
    }
  }
}

template <typename T>
FN void store_row8(DEV T* row, int i, int len, bool is_whole, THREAD const float* from) {
  if (is_whole) {
    store8(row + i, from);
  } else {
    UNROLL for (int e = 0; e < 8; e++) {
      if (i + e < len) {
        row[i + e] = T(from[e]);
      }
    }
  }
}
