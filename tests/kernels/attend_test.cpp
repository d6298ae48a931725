// SPDX-License-Identifier: MIT
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/kernel_testing.h"
#include "tensor/dtype.h"

namespace sh::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Options {
  DType key_type = DType::f32, value_type = DType::f32;
  int32_t key_width = 64, value_width = 64;
  int32_t n_queries = 4;
  int32_t n_blocks = 5;
  bool has_bias = false;
  bool has_pos = false;          // explicit, shuffled positions
  bool has_hidden_rows = false;  // some biases are -inf, those of block 1 all
  bool is_partial = false;       // blocks of 1 to 16 rows
  float softcap = 0.0f;
  int32_t window = 0;
  int32_t query_step = 0;   // position from one query to the next, from the middle of the rows on
  bool has_ranges = false;  // blocks seen by parts of the tile only
};

/// Owns everything that a tile views.
struct Scene {
  Options options;
  std::vector<std::vector<std::byte>> keys, values;
  std::vector<std::vector<float>> bias;
  std::vector<std::vector<int32_t>> pos;
  std::vector<KvBlockView> blocks;
  std::vector<float> queries, scratch;
  std::vector<int32_t> query_pos;
  int64_t query_stride;

  explicit Scene(const Options& o, uint64_t seed = 51) : options(o), query_stride(o.key_width + 3) {
    Rng rng(seed);
    int32_t next_pos = 0;
    for (int32_t b = 0; b < o.n_blocks; ++b) {
      const int32_t n_rows = o.is_partial ? 1 + static_cast<int32_t>(rng.next_below(16)) : 16;
      const uint64_t part = seed + 100 + static_cast<uint64_t>(b);
      keys.push_back(encoded(o.key_type, random_floats(int64_t{n_rows} * o.key_width, 2 * part)));
      values.push_back(encoded(o.value_type, random_floats(int64_t{n_rows} * o.value_width, 2 * part + 1)));
      bias.push_back(random_floats(n_rows, 7 * part));
      if (o.has_hidden_rows)
        for (size_t r = 0; r < bias.back().size(); ++r)
          if (b == 1 || r % 3 == 0) bias.back()[r] = -kInf;
      pos.emplace_back(static_cast<size_t>(n_rows));
      std::iota(pos.back().begin(), pos.back().end(), next_pos);
      if (o.has_pos)
        for (size_t r = pos.back().size(); r > 1; --r) std::swap(pos.back()[r - 1], pos.back()[rng.next_below(r)]);
      KvBlockView view{};
      view.first_pos = next_pos;
      view.n_rows = n_rows;
      view.query_begin =
          o.has_ranges ? static_cast<int32_t>(rng.next_below(static_cast<uint64_t>(o.n_queries))) : 0;
      view.query_end =
          o.has_ranges
              ? view.query_begin +
                    static_cast<int32_t>(rng.next_below(static_cast<uint64_t>(o.n_queries - view.query_begin + 1)))
              : o.n_queries;
      view.place = o.window > 0 ? b * kStepBlocks : b;
      blocks.push_back(view);
      next_pos += n_rows;
    }
    for (size_t b = 0; b < blocks.size(); ++b) {
      blocks[b].keys = keys[b].data();
      blocks[b].values = values[b].data();
      blocks[b].bias = o.has_bias || o.has_hidden_rows ? bias[b].data() : nullptr;
      blocks[b].pos = o.has_pos ? pos[b].data() : nullptr;
    }
    queries = random_floats(o.n_queries * query_stride, seed + 1);
    for (int32_t q = 0; q < o.n_queries; ++q)
      query_pos.push_back(o.query_step == 0 ? next_pos : next_pos / 2 + (q - o.n_queries / 2) * o.query_step);
    // The scratch arrives with anything in it.
    scratch.assign(static_cast<size_t>(attend_scratch_floats(o.n_queries, o.key_width, o.value_width)),
                   std::numeric_limits<float>::quiet_NaN());
  }

  static std::vector<std::byte> encoded(DType dtype, const std::vector<float>& x) {
    std::vector<std::byte> row(static_cast<size_t>(row_bytes(dtype, static_cast<int64_t>(x.size()))));
    tensor_format(dtype).quantize(x.data(), static_cast<int64_t>(x.size()), row.data());
    return row;
  }
};

struct Attended {
  std::vector<float> out, lse;
};

/// Queries [first, first + count) of the scene; the list of blocks is cut to theirs.
Attended run(const KernelSet& set, Scene& scene, int32_t first, int32_t count) {
  const Options& o = scene.options;
  std::vector<KvBlockView> blocks = scene.blocks;
  for (KvBlockView& block : blocks) {
    block.query_begin = std::clamp(block.query_begin - first, 0, count);
    block.query_end = std::clamp(block.query_end - first, 0, count);
  }
  std::erase_if(blocks, [](const KvBlockView& block) { return block.query_begin == block.query_end; });
  Attended result{std::vector<float>(static_cast<size_t>(count * (o.value_width + 1)), 9.0f),
                  std::vector<float>(static_cast<size_t>(count), 9.0f)};
  set.attend({.key_type = o.key_type,
              .value_type = o.value_type,
              .key_width = o.key_width,
              .value_width = o.value_width,
              .n_queries = count,
              .queries = scene.queries.data() + first * scene.query_stride,
              .query_stride = scene.query_stride,
              .query_pos = scene.query_pos.data() + first,
              .scale = 1.0f / std::sqrt(static_cast<float>(o.key_width)),
              .softcap = o.softcap,
              .window = o.window,
              .blocks = blocks,
              .out = result.out.data(),
              .out_stride = o.value_width + 1,
              .lse = result.lse.data(),
              .scratch = scene.scratch.data()});
  return result;
}
Attended run(const KernelSet& set, Scene& scene) {
  return run(set, scene, 0, scene.options.n_queries);
}

/// One softmax over all visible rows in double.
struct Exact {
  std::vector<double> out;
  double lse;
};
Exact exact_attention(const Scene& scene, int32_t query) {
  const Options& o = scene.options;
  std::vector<double> scores;
  std::vector<std::vector<float>> rows;
  for (size_t b = 0; b < scene.blocks.size(); ++b) {
    const KvBlockView& block = scene.blocks[b];
    if (query < block.query_begin || query >= block.query_end) continue;
    std::vector<float> key(static_cast<size_t>(o.key_width)), value(static_cast<size_t>(o.value_width));
    for (int32_t r = 0; r < block.n_rows; ++r) {
      const int32_t distance = scene.query_pos[static_cast<size_t>(query)] - scene.pos[b][static_cast<size_t>(r)];
      if (distance < 0 || (o.window != 0 && distance >= o.window)) continue;
      tensor_format(o.key_type)
          .dequantize(block.keys + r * row_bytes(o.key_type, o.key_width), o.key_width, key.data());
      tensor_format(o.value_type)
          .dequantize(block.values + r * row_bytes(o.value_type, o.value_width), o.value_width, value.data());
      double score = 0;
      for (int32_t i = 0; i < o.key_width; ++i)
        score += static_cast<double>(scene.queries[static_cast<size_t>(query * scene.query_stride + i)]) *
                 key[static_cast<size_t>(i)];
      score *= static_cast<double>(1.0f / std::sqrt(static_cast<float>(o.key_width)));
      if (o.softcap > 0.0f) score = o.softcap * std::tanh(score / o.softcap);
      if (block.bias != nullptr) score += block.bias[r];
      scores.push_back(score);
      rows.push_back(value);
    }
  }
  double largest = -kInf;
  for (double score : scores) largest = std::max(largest, score);
  Exact exact{std::vector<double>(static_cast<size_t>(o.value_width), 0.0), -kInf};
  if (largest == -kInf) return exact;
  double sum = 0;
  for (double score : scores) sum += std::exp(score - largest);
  for (size_t i = 0; i < rows.size(); ++i)
    for (size_t v = 0; v < exact.out.size(); ++v) exact.out[v] += std::exp(scores[i] - largest) / sum * rows[i][v];
  exact.lse = largest + std::log(sum);
  return exact;
}

void expect_exact(const Scene& scene, const Attended& got, const char* what) {
  const Options& o = scene.options;
  for (int32_t q = 0; q < o.n_queries; ++q) {
    const Exact exact = exact_attention(scene, q);
    // Scores of about |q| |k| / sqrt(width) ~ sqrt(width) carry a relative error of some eps · sqrt(width); it
    // moves weights by as much, and values of size 1 to 4 carry it on. With softcap tanh has an absolute error of
    // 2e-7 · softcap on top.
    const double tolerance = 40 * kEps * std::sqrt(o.key_width) + 4e-7 * o.softcap;
    if (exact.lse == -kInf) {
      EXPECT_EQ(got.lse[static_cast<size_t>(q)], -kInf) << what << " query " << q;
    } else {
      EXPECT_NEAR(got.lse[static_cast<size_t>(q)], exact.lse, tolerance) << what << " query " << q;
    }
    const float* out = got.out.data() + q * (o.value_width + 1);
    for (int32_t i = 0; i < o.value_width; ++i)
      EXPECT_NEAR(out[i], exact.out[static_cast<size_t>(i)], 4 * tolerance)
          << what << " query " << q << " value " << i;
    EXPECT_EQ(out[o.value_width], 9.0f) << "written past the row";
  }
}

void check(const KernelSet& set, const Options& options, const char* what) {
  Scene scene(options);
  expect_exact(scene, run(set, scene), what);
}

class Attend : public EverySet {};
SH_FOR_EVERY_SET(Attend);

TEST_P(Attend, QueriesAndGroupsOfAnyNumber) {
  for (int32_t n_queries : {1, 2, 3, 4, 5, 6, 7, 8, 13, 33, 64})
    check(set(), {.n_queries = n_queries}, "n_queries");
}

TEST_P(Attend, WidthsAreFree) {
  for (int32_t width : {1, 3, 8, 15, 16, 17, 40, 64, 80, 96, 128, 256, 576}) {
    check(set(), {.key_width = width, .value_width = width, .n_queries = 3}, "width");
    check(set(), {.key_width = width, .value_width = 24, .n_queries = 5}, "key width");
  }
}

TEST_P(Attend, EveryEncoding) {
  for (const TensorFormat* format : tensor_formats()) {
    if (!is_kv_dtype(format->dtype)) continue;
    check(set(), {.key_type = format->dtype, .value_type = format->dtype, .is_partial = true}, format->name);
    check(set(), {.key_type = format->dtype, .value_type = DType::f16, .key_width = 96}, format->name);
  }
}

TEST_P(Attend, PartialBlocksBiasesAndShuffledPositions) {
  for (bool has_bias : {false, true})
    for (bool has_pos : {false, true})
      for (int32_t n_queries : {1, 3, 9}) {
        const Options options{
            .n_queries = n_queries, .n_blocks = 9, .has_bias = has_bias, .has_pos = has_pos, .is_partial = true};
        check(set(), options, "partial");
      }
}

TEST_P(Attend, CausalTilesSeeTheirPast) {
  for (int32_t step : {1, 3, -2, 11}) {
    check(set(), {.n_queries = 17, .n_blocks = 8, .query_step = step}, "causal");
    check(set(),
          {.n_queries = 17,
           .n_blocks = 8,
           .has_bias = true,
           .has_pos = true,
           .is_partial = true,
           .query_step = step},
          "causal");
  }
}

TEST_P(Attend, Windows) {
  for (int32_t window : {1, 5, 16, 40, 1000})
    for (int32_t step : {0, 1, 5}) {
      check(set(), {.n_queries = 9, .n_blocks = 8, .window = window, .query_step = step}, "window");
      check(set(),
            {.n_queries = 9,
             .n_blocks = 8,
             .has_pos = true,
             .is_partial = true,
             .window = window,
             .query_step = step},
            "window");
    }
}

TEST_P(Attend, Softcap) {
  for (float softcap : {1.0f, 30.0f}) check(set(), {.has_bias = true, .softcap = softcap}, "softcap");
}

TEST_P(Attend, HiddenRowsAndHiddenBlocksGiveNoNan) {
  check(set(), {.has_hidden_rows = true}, "hidden");
  check(set(), {.n_blocks = 2, .has_hidden_rows = true, .is_partial = true}, "hidden");
  Scene scene({.n_blocks = 3, .has_hidden_rows = true});
  for (auto& bias : scene.bias) std::fill(bias.begin(), bias.end(), -kInf);
  expect_exact(scene, run(set(), scene), "all hidden");
  std::swap(scene.blocks[0], scene.blocks[1]);
  expect_exact(scene, run(set(), scene), "all hidden");
}

TEST_P(Attend, SmallAndLargeQueriesKeepTheirScoresOfCodedKeys) {
  for (const float factor : {1e-30f, 1e-3f, 1e3f, 1e30f}) {
    Scene scene({.key_type = DType::q8_0, .value_type = DType::q8_0, .n_queries = 2});
    for (float& x : scene.queries) x *= factor;
    const Attended got = run(set(), scene);
    for (int32_t q = 0; q < 2; ++q) {
      const Exact exact = exact_attention(scene, q);
      EXPECT_NEAR(got.lse[static_cast<size_t>(q)], exact.lse, 4e-6 * (1 + std::abs(exact.lse)));
    }
  }
}

TEST_P(Attend, NoBlocksAndNothingVisible) {
  check(set(), {.n_blocks = 0}, "no blocks");
  Scene scene({.n_blocks = 3});
  std::fill(scene.query_pos.begin(), scene.query_pos.end(), -1);
  const Attended got = run(set(), scene);
  for (float lse : got.lse) EXPECT_EQ(lse, -kInf);
  expect_exact(scene, got, "before the first row");
}

TEST_P(Attend, LargeScoresNeitherOverflowNorVanish) {
  Scene scene({.n_blocks = 6, .has_bias = true});
  for (float& x : scene.queries) x *= 20.0f;
  for (int32_t q = 0; q < 4; ++q) {
    const Attended got = run(set(), scene);
    const Exact exact = exact_attention(scene, q);
    // Scores around 20 sqrt(width) = 160 carry an absolute error of some 160 sqrt(width) eps = 8e-5 in the
    // weights.
    EXPECT_NEAR(got.lse[static_cast<size_t>(q)], exact.lse, 3e-4);
    for (size_t i = 0; i < exact.out.size(); ++i)
      EXPECT_NEAR(got.out[static_cast<size_t>(q) * 65 + i], exact.out[i], 1e-3);
  }
}

TEST_P(Attend, QueriesOfSeveralSequencesSeeTheirOwnBlocks) {
  for (uint64_t seed = 1; seed < 8; ++seed) {
    Scene scene({.n_queries = 12, .n_blocks = 14, .has_bias = true, .is_partial = true, .has_ranges = true}, seed);
    expect_exact(scene, run(set(), scene), "ranges");
  }
}

TEST_P(Attend, AQueryHasTheSameBitsWhateverElseIsInTheTile) {
  const std::vector<Options> cases = {{.n_queries = 23, .n_blocks = 9},
                                      {.key_type = DType::f16,
                                       .value_type = DType::q8_0,
                                       .key_width = 96,
                                       .value_width = 160,
                                       .n_queries = 23,
                                       .n_blocks = 9,
                                       .has_bias = true,
                                       .has_pos = true,
                                       .is_partial = true,
                                       .query_step = 3},
                                      {.key_type = DType::q8_0,
                                       .value_type = DType::q8_0,
                                       .key_width = 96,
                                       .value_width = 96,
                                       .n_queries = 23,
                                       .n_blocks = 9,
                                       .has_bias = true,
                                       .is_partial = true,
                                       .query_step = 3},
                                      {.key_type = DType::q4_0,
                                       .value_type = DType::q4_0,
                                       .key_width = 128,
                                       .n_queries = 23,
                                       .n_blocks = 12},
                                      {.n_queries = 23,
                                       .n_blocks = 9,
                                       .has_hidden_rows = true,
                                       .softcap = 20.0f,
                                       .window = 50,
                                       .query_step = 2,
                                       .has_ranges = true}};
  for (const Options& options : cases) {
    Scene scene(options);
    const Attended all = run(set(), scene);
    const size_t stride = static_cast<size_t>(options.value_width) + 1;
    for (int32_t count : {1, 2, 4, 7, 11})
      for (int32_t first = 0; first + count <= 23; first += count + 2) {
        const Attended some = run(set(), scene, first, count);
        for (size_t q = 0; q < static_cast<size_t>(count); ++q) {
          const size_t in_all = static_cast<size_t>(first) + q;
          EXPECT_EQ(some.lse[q], all.lse[in_all]) << count << " queries from " << first;
          EXPECT_EQ(0, std::memcmp(some.out.data() + q * stride, all.out.data() + in_all * stride,
                                   stride * sizeof(float)))
              << count << " queries from " << first;
        }
      }
  }
}

/// Two sequences of a tile that share the blocks of some places and have their own at others: places 1, 6 and 7
/// differ. Block 2 is partial with positions and biases of its own, as in a compacted head.
struct ForkedScene : Scene {
  int32_t half;
  ForkedScene(Options o, int32_t half_queries) : Scene(with_own_blocks(o, half_queries)), half(half_queries) {
    size_t next = 0;
    for (int32_t place = 0; place < 9; ++place) {
      const bool is_shared = place != 1 && place != 6 && place != 7;
      for (int32_t part = 0; part < (is_shared ? 1 : 2); ++part) {
        KvBlockView& view = blocks[next++];
        view.place = options.window > 0 ? place * kStepBlocks : place;
        view.query_begin = part * half;
        view.query_end = is_shared ? 2 * half : (part + 1) * half;
      }
    }
    cut(3, 5);  // of place 2, in the middle of a step
  }
  static Options with_own_blocks(Options o, int32_t half_queries) {
    o.n_queries = 2 * half_queries;
    o.n_blocks = 12;
    return o;
  }
  /// Leaves n_rows rows of a block, whose positions run backwards. The rest of the memory is poison.
  void cut(size_t block, int32_t n_rows) {
    blocks[block].n_rows = n_rows;
    std::reverse(pos[block].begin(), pos[block].begin() + n_rows);
    blocks[block].pos = pos[block].data();
    blocks[block].bias = bias[block].data();
    const size_t key_bytes = static_cast<size_t>(n_rows * row_bytes(options.key_type, options.key_width));
    const size_t value_bytes = static_cast<size_t>(n_rows * row_bytes(options.value_type, options.value_width));
    std::memset(keys[block].data() + key_bytes, 0xFF, keys[block].size() - key_bytes);
    std::memset(values[block].data() + value_bytes, 0xFF, values[block].size() - value_bytes);
  }
};

void expect_bits_of_singles(const KernelSet& set, Scene& scene, const char* what) {
  const Attended all = run(set, scene);
  expect_exact(scene, all, what);
  const size_t stride = static_cast<size_t>(scene.options.value_width) + 1;
  for (int32_t q = 0; q < scene.options.n_queries; ++q) {
    const Attended alone = run(set, scene, q, 1);
    EXPECT_EQ(alone.lse[0], all.lse[static_cast<size_t>(q)]) << what << " query " << q;
    EXPECT_EQ(
        0, std::memcmp(alone.out.data(), all.out.data() + static_cast<size_t>(q) * stride, stride * sizeof(float)))
        << what << " query " << q;
  }
}

TEST_P(Attend, PartlySharedStepsGiveTheBitsOfSingles) {
  for (const DType dtype : {DType::f32, DType::f16})
    for (const int32_t half : {1, 3, 16, 32})
      for (const int32_t window : {0, 70})
        for (const int32_t step : {0, 2}) {
          ForkedScene scene({.key_type = dtype,
                             .value_type = dtype,
                             .value_width = 80,
                             .has_bias = true,
                             .softcap = window > 0 ? 15.0f : 0.0f,
                             .window = window,
                             .query_step = step},
                            half);
          expect_bits_of_singles(set(), scene, "forked");
        }
}

TEST_P(Attend, PartialBlocksInsideAStepGiveTheBitsOfSingles) {
  for (const bool has_bias : {false, true})
    for (const float softcap : {0.0f, 15.0f})
      for (const int32_t n_queries : {5, 64}) {
        Scene scene({.key_type = DType::f16,
                     .value_type = DType::q8_0,
                     .n_queries = n_queries,
                     .n_blocks = 11,
                     .has_bias = has_bias,
                     .has_pos = true,
                     .is_partial = true,
                     .softcap = softcap,
                     .query_step = 1});
        expect_bits_of_singles(set(), scene, "partial");
      }
}

// Whole steps are mixed in one go for many queries and block by block for few; some queries stand within them.
TEST_P(Attend, WideTilesGiveTheBitsOfSingles) {
  for (const int32_t width : {64, 96, 128})
    for (const int32_t step : {0, 1, 2}) {
      Scene scene({.key_type = DType::f16,
                   .value_type = DType::f16,
                   .key_width = width,
                   .value_width = width,
                   .n_queries = 64,
                   .n_blocks = 17,
                   .query_step = step});
      expect_bits_of_singles(set(), scene, "wide");
    }
}

// A sum of -0 stays -0 alone and becomes +0 when weights of 0 are added: neither may be seen in the result.
TEST_P(Attend, ZerosHaveOneSign) {
  Scene scene({.n_queries = 32, .n_blocks = 4});
  for (size_t b = 0; b < 4; ++b) {
    std::vector<float> tiny(16 * 64, b == 0 ? -1e-45f : 1.0f);
    std::memcpy(scene.values[b].data(), tiny.data(), tiny.size() * sizeof(float));
  }
  for (int32_t q = 0; q < 32; ++q) scene.query_pos[static_cast<size_t>(q)] = q < 16 ? 15 : 63;
  for (float& x : scene.queries) x *= 20.0f;  // most weights are 0 or nearly so
  scene.query_pos[0] = 63;
  expect_bits_of_singles(set(), scene, "zeros");
}

TEST_P(Attend, ABiasOfZeroHasTheBitsOfNoBias) {
  Scene scene({.n_blocks = 7, .is_partial = true});
  const Attended without = run(set(), scene);
  for (size_t b = 0; b < scene.blocks.size(); ++b) {
    std::fill(scene.bias[b].begin(), scene.bias[b].end(), 0.0f);
    scene.blocks[b].bias = scene.bias[b].data();
  }
  const Attended with = run(set(), scene);
  EXPECT_EQ(with.out, without.out);
  EXPECT_EQ(with.lse, without.lse);
}

TEST_P(Attend, ABiasStandsForCopiesOfARow) {
  // Row 3 with bias log 5 weighs as much as five rows like it.
  Scene scene({.n_blocks = 1});
  scene.bias[0].assign(16, 0.0f);
  scene.bias[0][3] = std::log(5.0f);
  scene.blocks[0].bias = scene.bias[0].data();
  const Attended biased = run(set(), scene);
  scene.bias[0][3] = 0.0f;
  KvBlockView copy = scene.blocks[0];
  copy.keys += 3 * 64 * sizeof(float);
  copy.values += 3 * 64 * sizeof(float);
  copy.n_rows = 1;
  copy.bias = nullptr;
  for (; copy.place < 4; scene.blocks.push_back(copy)) ++copy.place;
  const Attended copied = run(set(), scene);
  for (size_t i = 0; i < biased.out.size(); ++i) EXPECT_NEAR(biased.out[i], copied.out[i], 100 * kEps * 4);
}

}  // namespace
}  // namespace sh::kernels
