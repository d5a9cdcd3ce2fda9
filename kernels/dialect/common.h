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
  float sum = 0;
  for (int i = 0; i < threads / 32; i++) {
    sum += part[i];
  }
  return sum;
}
