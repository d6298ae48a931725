// SPDX-License-Identifier: MIT
// Vector loops over floats. Included inside a target region and namespace, after the target's primitives.

/// exp within 2 units in the last place; 0 below the smallest normal number and for -inf, inf above the largest,
/// NaN of NaN.
///
/// Source:  Cody and Waite's range reduction x = n·ln 2 + r; the polynomial interpolates exp at the
/// Chebyshev nodes of |r| <= ln 2 / 2 (degree 6, relative error 2.6e-9 before rounding).
inline F exp_of(F x) {
  const F clamped = max(set1(-90.0f), min(set1(89.0f), x));
  const F n = round_to_int(mul(clamped, set1(1.44269504f)));
  F r = nfma(n, set1(0.693359375f), clamped);
  r = nfma(n, set1(-2.12194440e-4f), r);
  F p = set1(1.394110843e-3f);
  p = fma(p, r, set1(8.375126398e-3f));
  p = fma(p, r, set1(4.166635290e-2f));
  p = fma(p, r, set1(1.666641551e-1f));
  p = fma(p, r, set1(5.000000047e-1f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return zero_below(clamped, set1(-87.3365f), scale_by_power(p, n));
}

/// Runs full(i) for whole vectors and rest(i, n) for what remains.
template <typename Full, typename Rest>
inline void over_lanes(int64_t n, Full full, Rest rest) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) full(i);
  if (i < n) rest(i, n - i);
}

/// A count as a type, for loops that are unrolled by it.
template <int kValue>
struct Count {
  static constexpr int value = kValue;
};
/// fn(Count<n>{}) for n from 1 to kMost.
template <int kMost, typename Fn>
SH_INLINE void with_count(int64_t n, Fn fn) {
  if (n == kMost)
    fn(Count<kMost>{});
  else if constexpr (kMost > 1)
    with_count<kMost - 1>(n, fn);
}

/// fn(first, n) for as few parts of [0, count) as have kMost at most, all of about the same size: a last one of 1 or 2 has
/// too few sums to hide the latency.
template <int kMost, typename Fn>
SH_INLINE void in_even_parts(int64_t count, Fn fn) {
  const int64_t n_parts = (count + kMost - 1) / kMost;
  for (int64_t part = 0; part < n_parts; ++part) {
    const int64_t first = part * count / n_parts;
    fn(first, (part + 1) * count / n_parts - first);
  }
}

inline void fill(float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i) x[i] = value;
}
constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

float dot(const float* a, const float* b, int64_t n) {
  F sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int64_t j = 0; j < 4; ++j) sums[j] = fma(load(a + i + j * kLanes), load(b + i + j * kLanes), sums[j]);
  for (; i + kLanes <= n; i += kLanes) sums[0] = fma(load(a + i), load(b + i), sums[0]);
  if (i < n) sums[1] = fma(load_n(a + i, n - i), load_n(b + i, n - i), sums[1]);
  return sum_lanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

void add_rows(const float* a, const float* b, float* out, int64_t n) {
  over_lanes(
      n, [&](int64_t i) { store(out + i, add(load(a + i), load(b + i))); },
      [&](int64_t i, int64_t rest) { store_n(out + i, add(load_n(a + i, rest), load_n(b + i, rest)), rest); });
}

void axpy(float alpha, const float* x, float* y, int64_t n) {
  const F factor = set1(alpha);
  over_lanes(
      n, [&](int64_t i) { store(y + i, fma(factor, load(x + i), load(y + i))); },
      [&](int64_t i, int64_t rest) {
        store_n(y + i, fma(factor, load_n(x + i, rest), load_n(y + i, rest)), rest);
      });
}

void rms_norm(const float* x, const float* weight, float eps, float* y, int64_t n) {
  const float mean = dot(x, x, n) / static_cast<float>(n > 0 ? n : 1);
  const F factor = set1(1.0f / __builtin_sqrtf(mean + eps));
  if (weight == nullptr) {
    over_lanes(
        n, [&](int64_t i) { store(y + i, mul(load(x + i), factor)); },
        [&](int64_t i, int64_t rest) { store_n(y + i, mul(load_n(x + i, rest), factor), rest); });
    return;
  }
  over_lanes(
      n, [&](int64_t i) { store(y + i, mul(mul(load(x + i), factor), load(weight + i))); },
      [&](int64_t i, int64_t rest) {
        store_n(y + i, mul(mul(load_n(x + i, rest), factor), load_n(weight + i, rest)), rest);
      });
}

inline F gated(F gate, F up) {
  return mul(div(gate, add(set1(1.0f), exp_of(sub(zero(), gate)))), up);
}

void swiglu(const float* gate, const float* up, float* y, int64_t n) {
  over_lanes(
      n, [&](int64_t i) { store(y + i, gated(load(gate + i), load(up + i))); },
      [&](int64_t i, int64_t rest) { store_n(y + i, gated(load_n(gate + i, rest), load_n(up + i, rest)), rest); });
}

float exp_sum(float* x, float shift, int64_t n) {
  const F offset = set1(shift);
  F sum = zero();
  float rest_sum = 0.0f;
  over_lanes(
      n,
      [&](int64_t i) {
        const F y = exp_of(sub(load(x + i), offset));
        store(x + i, y);
        sum = add(sum, y);
      },
      [&](int64_t i, int64_t rest) {
        store_n(x + i, exp_of(sub(load_n(x + i, rest), offset)), rest);
        for (int64_t j = i; j < i + rest; ++j) rest_sum += x[j];
      });
  return sum_lanes(sum) + rest_sum;
}

float max_of(const float* x, int64_t n) {
  F best = set1(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) best = max(load(x + i), best);
  float result = max_lane(best);
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

/// Rotates one pair.
inline void rotate(float* a, float* b, float cos, float sin) {
  const float x = *a;
  const float y = *b;
  *a = x * cos - y * sin;
  *b = x * sin + y * cos;
}

void rope_adjacent(float* x, const float* cos, const float* sin, int64_t n_pairs) {
  constexpr int64_t kPairs = kLanes / 2;
  int64_t i = 0;
  for (; i + kPairs <= n_pairs; i += kPairs) {
    const F pairs = load(x + 2 * i);
    store(x + 2 * i, fmaddsub(pairs, load_doubled(cos + i), mul(swap_pairs(pairs), load_doubled(sin + i))));
  }
  for (; i < n_pairs; ++i) rotate(x + 2 * i, x + 2 * i + 1, cos[i], sin[i]);
}

void rope_halves(float* x, const float* cos, const float* sin, int64_t n_pairs) {
  float* y = x + n_pairs;
  int64_t i = 0;
  for (; i + kLanes <= n_pairs; i += kLanes) {
    const F a = load(x + i), b = load(y + i), c = load(cos + i), s = load(sin + i);
    store(x + i, nfma(b, s, mul(a, c)));
    store(y + i, fma(a, s, mul(b, c)));
  }
  for (; i < n_pairs; ++i) rotate(x + i, y + i, cos[i], sin[i]);
}

/// Scale amax / 127, values rounded to nearest even; the bits of the generic set.
void quantize_q8_part(const float* x, int64_t begin, int64_t end, int64_t n, std::byte* out) {
  const Q8RowOut row = Q8RowOut::at(out, n);
  const float* in = x;
  for (int64_t g = begin / kQ8Group; g < end / kQ8Group; ++g, in += kQ8Group) {
    F largest = zero();
    for (int64_t i = 0; i < kQ8Group; i += kLanes) largest = max(absolute(load(in + i)), largest);
    const float amax = max_lane(largest);
    const bool is_zero = !(amax > kQ8MinAmax);
    const F inverse = set1(is_zero ? 0.0f : 127.0f / amax);
    row.scale[g] = is_zero ? 0.0f : amax / 127.0f;
    for (int64_t i = 0; i < kQ8Group; i += kLanes) {
      const F rounded = round_to_int(mul(load(in + i), inverse));
      const F in_range = zero_below(set1(127.0f), absolute(rounded), rounded);
      store_bytes(row.q + g * kQ8Group + i, to_int(in_range));
    }
    row.finish_group(g);
  }
}
