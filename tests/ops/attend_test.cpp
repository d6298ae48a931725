// SPDX-License-Identifier: MIT
// Attention over paged caches against a softmax in double over the decoded rows, and against itself: other
// batches, other thread counts, other chunks must give the same bits.
#include <cmath>
#include <cstring>
#include <limits>

#include "kv/kv_testing.h"
#include "ops/ops.h"

namespace sh::ops {
namespace {

using namespace kv::testing;
using kv::KvLayout;
using kv::Pos;
using kv::SequenceCache;

constexpr int64_t kMiB = 1 << 20;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Output {
  Mat<float> out, lse;
  bool operator==(const Output& other) const {
    return out.data.size() == other.out.data.size() && lse.data.size() == other.lse.data.size() &&
           std::memcmp(out.data.data(), other.out.data.data(), out.data.size() * 4) == 0 &&
           std::memcmp(lse.data.data(), other.lse.data.data(), lse.data.size() * 4) == 0;
  }
};

/// Queries over several sequences.
struct Batch {
  Mat<float> queries;
  std::vector<Pos> pos;
  std::vector<SequenceCache*> sequences;
  int64_t n() const { return queries.rows; }
  Batch part(int64_t first, int64_t n_tokens) const {
    Batch result{Mat<float>(n_tokens, queries.cols),
                 {pos.begin() + first, pos.begin() + first + n_tokens},
                 {sequences.begin() + first, sequences.begin() + first + n_tokens}};
    std::copy_n(queries.row(first), n_tokens * queries.cols, result.queries.data.data());
    return result;
  }
};

struct Attention {
  int32_t layer = 0;
  int32_t n_heads = 0;
  float softcap = 0.0f;
  float scale = 0.2f;  // near 1 / sqrt(width) of these tests
};

Output run_on(OpContext& ctx, const Batch& batch, const Attention& what, bool with_lse = true) {
  const kv::LayerLayout& shape = batch.sequences[0]->pool().layout().layers[static_cast<size_t>(what.layer)];
  Output result{Mat<float>(batch.n(), int64_t{what.n_heads} * shape.value_width),
                Mat<float>(batch.n(), what.n_heads)};
  // Poison: everything must be written.
  std::fill(result.out.data.begin(), result.out.data.end(), 1e30f);
  std::fill(result.lse.data.begin(), result.lse.data.end(), 1e30f);
  AttendArgs args{.layer = what.layer,
                  .n_heads = what.n_heads,
                  .queries = batch.queries.view(),
                  .pos = batch.pos,
                  .sequences = batch.sequences,
                  .scale = what.scale,
                  .softcap = what.softcap,
                  .out = result.out.view(),
                  .lse = {}};
  if (with_lse) args.lse = result.lse.view();
  attend(ctx, args);
  return result;
}

Output run(const Batch& batch, const Attention& what, int n_threads,
           const kernels::KernelSet& set = best_kernels()) {
  ThreadPool threads(n_threads);
  OpContext ctx;
  ctx.pool = &threads;
  ctx.kernels = &set;
  return run_on(ctx, batch, what);
}

/// Softmax over all visible rows, in double.
Output run_naive(const Batch& batch, const Attention& what, const kernels::KernelSet& set) {
  const kv::LayerLayout& shape = batch.sequences[0]->pool().layout().layers[static_cast<size_t>(what.layer)];
  const int32_t group = what.n_heads / shape.n_heads;
  Output result{Mat<float>(batch.n(), int64_t{what.n_heads} * shape.value_width),
                Mat<float>(batch.n(), what.n_heads)};
  for (int32_t kv_head = 0; kv_head < shape.n_heads; ++kv_head) {
    const SequenceCache* last = nullptr;
    SequenceCache::DecodedHead rows;
    for (int64_t token = 0; token < batch.n(); ++token) {
      if (batch.sequences[static_cast<size_t>(token)] != last) {
        last = batch.sequences[static_cast<size_t>(token)];
        rows = last->decode_head(set, what.layer, kv_head);
      }
      for (int32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const float* query = batch.queries.row(token) + int64_t{head} * shape.key_width;
        std::vector<double> scores(rows.pos.size(), -std::numeric_limits<double>::infinity());
        double highest = -std::numeric_limits<double>::infinity();
        for (size_t row = 0; row < scores.size(); ++row) {
          const int64_t distance = batch.pos[static_cast<size_t>(token)] - rows.pos[row];
          if (distance < 0 || (shape.window > 0 && distance >= shape.window)) continue;
          double score = 0.0;
          for (int32_t i = 0; i < shape.key_width; ++i)
            score += double{query[i]} * rows.keys(static_cast<int64_t>(row), i);
          score *= what.scale;
          if (what.softcap > 0.0f) score = what.softcap * std::tanh(score / what.softcap);
          scores[row] = score + rows.bias[row];
          highest = std::max(highest, scores[row]);
        }
        float* out = result.out.row(token) + int64_t{head} * shape.value_width;
        result.lse(token, head) = kMinusInfinity;
        if (std::isinf(highest)) continue;
        double sum = 0.0;
        std::vector<double> total(static_cast<size_t>(shape.value_width));
        for (size_t row = 0; row < scores.size(); ++row) {
          const double weight = std::exp(scores[row] - highest);
          if (weight == 0.0) continue;
          sum += weight;
          for (int32_t i = 0; i < shape.value_width; ++i)
            total[static_cast<size_t>(i)] += weight * rows.values(static_cast<int64_t>(row), i);
        }
        for (int32_t i = 0; i < shape.value_width; ++i)
          out[i] = static_cast<float>(total[static_cast<size_t>(i)] / sum);
        result.lse(token, head) = static_cast<float>(highest + std::log(sum));
      }
    }
  }
  return result;
}

/// Scores are sums of 32..64 products of size about 1, kept in f32 (epsilon 6e-8, error about 1e-6); weights and
/// values follow with the same relative error, values reach about 4.
constexpr double kTolerance = 2e-5;

void expect_close(const Output& got, const Output& expected) {
  double worst = 0.0;
  for (size_t i = 0; i < got.out.data.size(); ++i) {
    const double error = std::abs(double{got.out.data[i]} - expected.out.data[i]);
    worst = std::max(worst, std::isnan(error) ? 1e30 : error);
  }
  for (size_t i = 0; i < got.lse.data.size(); ++i) {
    const float a = got.lse.data[i], b = expected.lse.data[i];
    if (std::isinf(b)) {
      EXPECT_EQ(a, b);
      continue;
    }
    worst = std::max(worst, std::isfinite(a) ? std::abs(double{a} - b) : 1e30);
  }
  EXPECT_LT(worst, kTolerance);
}

KvLayout two_layers(DType key_type = DType::f32, DType value_type = DType::f32) {
  return KvLayout{.layers = {{.n_heads = 2, .key_width = 32, .value_width = 64, .window = 0},
                             {.n_heads = 3, .key_width = 32, .value_width = 32, .window = 30}},
                  .key_type = key_type,
                  .value_type = value_type};
}

void add_tokens(Batch& batch, SequenceCache& cache, int64_t first_pos, int64_t n_tokens) {
  for (int64_t i = 0; i < n_tokens; ++i) {
    batch.pos.push_back(Pos(first_pos + i));
    batch.sequences.push_back(&cache);
  }
}

/// Sequences in all states, in scattered blocks: short, long, compacted (ragged, emptied heads, -inf biases),
/// forked, windowed, empty.
struct Scene {
  std::unique_ptr<kv::BlockPool> pool;
  std::unique_ptr<Scatter> scatter;
  std::vector<std::unique_ptr<SequenceCache>> sequences;
  Rng rng;

  Scene(const KvLayout& layout, uint64_t seed) : pool(make_pool(layout, 64 * kMiB)), rng(seed) {
    scatter = std::make_unique<Scatter>(*pool, 400, seed);
    SequenceCache& prefix = add(70);
    for (const int64_t n : {3, 18}) {
      sequences.push_back(std::make_unique<SequenceCache>(prefix.fork()));
      grow(*sequences.back(), n);
    }
    SequenceCache& compacted = add(150);
    EXPECT_TRUE(compacted.replace(random_compaction(compacted, rng, Pos(130), 0.2, 0.3), Pos(130)).ok());
    grow(compacted, 25);
    EXPECT_TRUE(compacted.replace(random_compaction(compacted, rng, Pos(160), 0.5, 0.0), Pos(160)).ok());
    sequences.push_back(std::make_unique<SequenceCache>(compacted.fork()));
    grow(*sequences.back(), 1);
    SequenceCache& hollow = add(40);  // some heads see nothing at all
    EXPECT_TRUE(hollow.replace(random_compaction(hollow, rng, Pos(40), 0.0, 1.0), Pos(40)).ok());
    add(1);
    SequenceCache& windowed = add(90);
    windowed.drop_outside_window(windowed.next_pos());
    add(0);
  }
  SequenceCache& add(int64_t n_tokens) {
    sequences.push_back(std::make_unique<SequenceCache>(*pool));
    grow(*sequences.back(), n_tokens);
    return *sequences.back();
  }
  void grow(SequenceCache& cache, int64_t n_tokens) {
    for (int64_t done = 0; done < n_tokens; done += 20) {
      scatter->stir(3);
      extend(cache, rng, std::min<int64_t>(20, n_tokens - done));
    }
  }
  /// The last n_tokens positions of every sequence, as after a step, whatever n_tokens each of them has.
  Batch batch(const Attention& what, int64_t n_tokens) {
    Batch result;
    for (const auto& cache : sequences) {
      const int64_t length = cache->next_pos() - Pos(0);
      const int64_t n = std::min(n_tokens, std::max<int64_t>(1, length));
      add_tokens(result, *cache, std::max<int64_t>(0, length - n), n);
    }
    const kv::LayerLayout& shape = pool->layout().layers[static_cast<size_t>(what.layer)];
    result.queries =
        random_matrix(rng, static_cast<int64_t>(result.pos.size()), int64_t{what.n_heads} * shape.key_width);
    return result;
  }
};

TEST(Attend, MatchesSoftmaxInAllEncodings) {
  for (const kernels::KernelSet* set : kernels::kernel_sets()) {
    if (!set->supported()) continue;
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0}) {
      Scene scene(two_layers(dtype, dtype), 31);
      for (const int32_t layer : {0, 1}) {
        SCOPED_TRACE(std::string(set->name) + " " + tensor_format(dtype).name + " layer " + std::to_string(layer));
        const Attention what{.layer = layer, .n_heads = 6};
        const Batch batch = scene.batch(what, 12);
        expect_close(run(batch, what, 1, *set), run_naive(batch, what, *set));
      }
    }
  }
}

TEST(Attend, KeysAndValuesMayDifferInEncoding) {
  Scene scene(two_layers(DType::q8_0, DType::f16), 33);
  const Attention what{.layer = 0, .n_heads = 4};
  const Batch batch = scene.batch(what, 5);
  expect_close(run(batch, what, 1), run_naive(batch, what, best_kernels()));
}

TEST(Attend, MatchesSoftmaxForAllGroups) {
  Scene scene(two_layers(), 32);
  for (const int32_t group : {1, 2, 3, 4, 7, 8, 70}) {
    for (const int32_t layer : {0, 1}) {
      SCOPED_TRACE("group " + std::to_string(group) + " layer " + std::to_string(layer));
      const Attention what{.layer = layer, .n_heads = group * (layer == 0 ? 2 : 3)};
      for (const int64_t n_tokens : {1, 17, 80}) {
        const Batch batch = scene.batch(what, n_tokens);
        expect_close(run(batch, what, 1), run_naive(batch, what, best_kernels()));
      }
    }
  }
}

TEST(Attend, Softcap) {
  Scene scene(two_layers(), 34);
  const Attention what{.layer = 0, .n_heads = 4, .softcap = 1.5f};
  const Batch batch = scene.batch(what, 9);
  expect_close(run(batch, what, 2), run_naive(batch, what, best_kernels()));
}

TEST(Attend, NoVisibleRowGivesZero) {
  Scene scene(two_layers(), 35);
  const Attention what{.layer = 0, .n_heads = 4};
  Batch batch;
  add_tokens(batch, *scene.sequences.back(), 0, 1);  // empty
  batch.queries = random_matrix(scene.rng, 1, 4 * 32);
  const Output result = run(batch, what, 1);
  for (const float x : result.out.data) EXPECT_EQ(x, 0.0f);
  for (const float x : result.lse.data) EXPECT_EQ(x, kMinusInfinity);
}

TEST(Attend, BatchGivesTheBitsOfSingles) {
  for (const DType dtype : {DType::f16, DType::q8_0}) {
    Scene scene(two_layers(dtype, dtype), 36);
    for (const int32_t layer : {0, 1}) {
      const Attention what{.layer = layer, .n_heads = 6};
      const Batch batch = scene.batch(what, 23);
      const Output whole = run(batch, what, 1);
      for (int64_t token = 0; token < batch.n(); ++token) {
        const Output single = run(batch.part(token, 1), what, 1);
        ASSERT_EQ(std::memcmp(single.out.row(0), whole.out.row(token), static_cast<size_t>(whole.out.cols) * 4), 0)
            << token;
        ASSERT_EQ(std::memcmp(single.lse.row(0), whole.lse.row(token), static_cast<size_t>(whole.lse.cols) * 4), 0)
            << token;
      }
      // An odd piece out of the middle.
      const Output piece = run(batch.part(7, 31), what, 1);
      EXPECT_EQ(std::memcmp(piece.out.data.data(), whole.out.row(7), piece.out.data.size() * 4), 0);
    }
  }
}

TEST(Attend, ThreadsDoNotChangeBits) {
  Scene scene(two_layers(DType::f16, DType::f16), 37);
  for (const int32_t layer : {0, 1}) {
    const Attention what{.layer = layer, .n_heads = 6};
    const Batch batch = scene.batch(what, 40);
    const Output one = run(batch, what, 1);
    for (const int n_threads : {2, 3, 8}) EXPECT_TRUE(run(batch, what, n_threads) == one) << n_threads;
  }
}

// Above 2048 rows a head is read in segments.
TEST(Attend, LongCachesInSegments) {
  const KvLayout layout{.layers = {{.n_heads = 2, .key_width = 32, .value_width = 32, .window = 0}},
                        .key_type = DType::f16,
                        .value_type = DType::f16};
  const auto pool = make_pool(layout, 64 * kMiB);
  Rng rng(40);
  SequenceCache document(*pool), compacted(*pool), small(*pool);
  extend(document, rng, 5000);
  extend(small, rng, 100);
  extend(compacted, rng, 4600);
  ASSERT_TRUE(compacted.replace(random_compaction(compacted, rng, Pos(4000), 0.5, 0.0), Pos(4000)).ok());
  extend(compacted, rng, 7);
  SequenceCache fork = document.fork();
  extend(fork, rng, 30);
  const Attention what{.layer = 0, .n_heads = 6};
  Batch batch;
  add_tokens(batch, document, 4999, 1);
  add_tokens(batch, fork, 5000, 30);
  add_tokens(batch, small, 90, 10);
  add_tokens(batch, compacted, 4600, 7);
  add_tokens(batch, document, 2040, 20);  // earlier queries, on both sides of the first border
  batch.queries = random_matrix(rng, static_cast<int64_t>(batch.pos.size()), 6 * 32);
  const Output one = run(batch, what, 1);
  expect_close(one, run_naive(batch, what, best_kernels()));
  for (const int n_threads : {2, 7, 64}) EXPECT_TRUE(run(batch, what, n_threads) == one) << n_threads;
  for (int64_t token = 0; token < batch.n(); ++token) {
    for (const int n_threads : {1, 4}) {  // one after another, and as tasks of their own
      const Output single = run(batch.part(token, 1), what, n_threads);
      ASSERT_EQ(std::memcmp(single.out.row(0), one.out.row(token), static_cast<size_t>(one.out.cols) * 4), 0)
          << token;
      ASSERT_EQ(std::memcmp(single.lse.row(0), one.lse.row(token), static_cast<size_t>(one.lse.cols) * 4), 0)
          << token;
    }
  }
}

TEST(Attend, SegmentsWithoutVisibleRows) {
  const KvLayout layout{.layers = {{.n_heads = 1, .key_width = 32, .value_width = 32, .window = 0}},
                        .key_type = DType::f32,
                        .value_type = DType::f32};
  const auto pool = make_pool(layout, 64 * kMiB);
  Rng rng(41);
  SequenceCache cache(*pool);
  extend(cache, rng, 6000);
  auto rows = random_compaction(cache, rng, Pos(0), 1.0, 0.0);
  std::fill_n(rows[0][0].bias.begin(), 2500, kMinusInfinity);  // the whole first segment and some of the second
  ASSERT_TRUE(cache.replace(rows, Pos(6000)).ok());
  const Attention what{.layer = 0, .n_heads = 2};
  Batch batch;
  for (const int64_t pos : {5999, 2499, 2500, 3000, 100}) add_tokens(batch, cache, pos, 1);
  batch.queries = random_matrix(rng, 5, 2 * 32);
  const Output one = run(batch, what, 1);
  expect_close(one, run_naive(batch, what, best_kernels()));
  EXPECT_EQ(one.lse(1, 0), kMinusInfinity);
  EXPECT_EQ(one.out(1, 0), 0.0f);
  EXPECT_TRUE(run(batch, what, 4) == one);
}

// Prefill in any chunks, and token by token, is the same computation.
TEST(Attend, ChunksDoNotChangeBits) {
  const KvLayout layout = two_layers(DType::f16, DType::f16);
  const auto pool = make_pool(layout, 64 * kMiB);
  const int64_t n = 150;
  Rng rng(42);
  std::vector<Mat<float>> keys, values;
  for (const kv::LayerLayout& shape : layout.layers) {
    keys.push_back(random_matrix(rng, n, int64_t{shape.n_heads} * shape.key_width));
    values.push_back(random_matrix(rng, n, int64_t{shape.n_heads} * shape.value_width));
  }
  const Mat<float> queries = random_matrix(rng, n, 6 * 32);
  std::vector<Output> results;
  for (const int64_t chunk : {150, 1, 64, 7}) {
    SequenceCache cache(*pool);
    Output all{Mat<float>(2 * n, 6 * 64), Mat<float>(2 * n, 6)};
    for (int64_t done = 0; done < n; done += chunk) {
      const int64_t n_now = std::min(chunk, n - done);
      ASSERT_TRUE(cache.reserve(n_now).ok());
      for (int32_t layer : {0, 1}) {
        const size_t l = static_cast<size_t>(layer);
        cache.append(best_kernels(), layer, 0, keys[l].view().slice(done, n_now),
                     values[l].view().slice(done, n_now));
        Batch batch;
        add_tokens(batch, cache, done, n_now);
        batch.queries = Mat<float>(n_now, queries.cols);
        std::copy_n(queries.row(done), n_now * queries.cols, batch.queries.data.data());
        const Output part = run(batch, {.layer = layer, .n_heads = 6}, 2);
        for (int64_t i = 0; i < n_now; ++i) {
          std::copy_n(part.out.row(i), part.out.cols, all.out.row(layer * n + done + i));
          std::copy_n(part.lse.row(i), 6, all.lse.row(layer * n + done + i));
        }
      }
      cache.commit(n_now);
      cache.drop_outside_window(cache.next_pos());  // dropping what no query sees changes nothing either
    }
    results.push_back(std::move(all));
  }
  for (size_t i = 1; i < results.size(); ++i) EXPECT_TRUE(results[i] == results[0]) << i;
}

int64_t n_rows_read = 0;

TEST(Attend, SharedPrefixIsReadOnceForAllForks) {
  const KvLayout layout{.layers = {{.n_heads = 1, .key_width = 32, .value_width = 32, .window = 0}}};
  const auto pool = make_pool(layout, 64 * kMiB);
  Rng rng(43);
  SequenceCache document(*pool);
  extend(document, rng, 1000);
  std::vector<SequenceCache> forks;
  Batch batch;
  for (int i = 0; i < 64; ++i) {
    forks.push_back(document.fork());
    extend(forks.back(), rng, 1 + i % 30);
  }
  for (SequenceCache& fork : forks) add_tokens(batch, fork, fork.next_pos().value - 1, 1);
  batch.queries = random_matrix(rng, 64, 32);
  const Attention what{.layer = 0, .n_heads = 1};
  static void (*attend_kernel)(const kernels::AttendTile&) = best_kernels().attend;
  kernels::KernelSet counting = best_kernels();
  counting.attend = [](const kernels::AttendTile& tile) {
    for (const kernels::KvBlockView& block : tile.blocks) n_rows_read += block.n_rows;
    attend_kernel(tile);
  };
  n_rows_read = 0;
  const Output one = run(batch, what, 1, counting);
  expect_close(one, run_naive(batch, what, best_kernels()));
  // 992 shared rows once; 8 rows of the copied tail and 1 to 30 own ones for each fork.
  int64_t n_own = 0;
  for (const SequenceCache& fork : forks) n_own += fork.head(0, 0).n_rows - 992;
  EXPECT_EQ(n_rows_read, 992 + n_own);
  for (int64_t token = 0; token < 64; ++token) {
    const Output single = run(batch.part(token, 1), what, 1);
    ASSERT_EQ(std::memcmp(single.out.row(0), one.out.row(token), 32 * 4), 0);
  }
}

// Two forks that part inside a step of the softmax: some of its blocks are shared, others are each one's own.
TEST(Attend, ForksThatPartInsideAStep) {
  const KvLayout layout{.layers = {{.n_heads = 1, .key_width = 32, .value_width = 32, .window = 0},
                                   {.n_heads = 1, .key_width = 32, .value_width = 32, .window = 50}},
                        .key_type = DType::f16,
                        .value_type = DType::f16};
  const auto pool = make_pool(layout, kMiB);
  Rng rng(47);
  SequenceCache document(*pool);
  extend(document, rng, 200);
  SequenceCache fork = document.fork();
  ASSERT_TRUE(fork.truncate(Pos(90)).ok());  // inside block 5, the second of its step
  extend(fork, rng, 110);
  Batch batch;
  for (const int64_t first : {190, 80}) {
    add_tokens(batch, document, first, 8);
    add_tokens(batch, fork, first, 8);
  }
  batch.queries = random_matrix(rng, static_cast<int64_t>(batch.pos.size()), 4 * 32);
  for (const int32_t layer : {0, 1}) {
    const Attention of_layer{.layer = layer, .n_heads = 4};
    const Output whole = run(batch, of_layer, 1);
    expect_close(whole, run_naive(batch, of_layer, best_kernels()));
    for (int64_t token = 0; token < batch.n(); ++token) {
      const Output single = run(batch.part(token, 1), of_layer, 1);
      ASSERT_EQ(std::memcmp(single.out.row(0), whole.out.row(token), 4 * 32 * 4), 0) << layer << " " << token;
      ASSERT_EQ(std::memcmp(single.lse.row(0), whole.lse.row(token), 4 * 4), 0) << layer << " " << token;
    }
  }
}

// A fork that was truncated holds the same block with fewer rows: not the same view.
TEST(Attend, TruncatedForkDoesNotSeeTheOthersRows) {
  const KvLayout layout{.layers = {{.n_heads = 1, .key_width = 32, .value_width = 32, .window = 0}}};
  const auto pool = make_pool(layout, kMiB);
  Rng rng(44);
  SequenceCache whole(*pool);
  extend(whole, rng, 30);
  SequenceCache cut = whole.fork();
  ASSERT_TRUE(cut.truncate(Pos(20)).ok());
  Batch batch;
  add_tokens(batch, whole, 29, 1);
  add_tokens(batch, cut, 29, 1);  // a position at which the other's rows would be visible
  add_tokens(batch, whole, 29, 1);
  batch.queries = random_matrix(rng, 3, 32);
  const Attention what{.layer = 0, .n_heads = 1};
  expect_close(run(batch, what, 1), run_naive(batch, what, best_kernels()));
}

// Rows that were never written hold whatever the memory held before.
TEST(Attend, RowsBehindTheEndAreNeverRead) {
  const KvLayout layout = two_layers();
  const auto pool = make_pool(layout, kMiB);
  std::vector<kv::BlockId> poisoned;
  for (const int32_t arena : {0, 1}) {
    while (poisoned.size() < static_cast<size_t>(10 * (arena + 1))) {
      poisoned.push_back(pool->allocate(arena).value());
      // NaN in every encoding. One block stays, so that the page keeps the poison.
      std::memset(pool->keys(poisoned.back()), 0xFF, static_cast<size_t>(pool->block_bytes(arena)));
    }
  }
  Rng rng(45);
  for (size_t i = 0; i < poisoned.size(); ++i) {
    if (i % 2 == 0) pool->release(poisoned[i]);
  }
  SequenceCache cache(*pool);
  extend(cache, rng, 19);
  for (int32_t layer : {0, 1}) {  // and the rest of a tail block for certain
    const kv::LayerLayout& shape = layout.layers[static_cast<size_t>(layer)];
    const kv::BlockEntry& tail = cache.head(layer, 0).blocks.back();
    const auto poison = [&](std::byte* rows, int32_t width) {
      std::memset(rows + tail.n_rows * width * 4, 0xFF, static_cast<size_t>((16 - tail.n_rows) * width * 4));
    };
    poison(pool->keys(tail.block), shape.key_width);
    poison(pool->values(tail.block), shape.value_width);
  }
  for (const int32_t layer : {0, 1}) {
    const Attention what{.layer = layer, .n_heads = 6};
    Batch batch;
    add_tokens(batch, cache, 3, 40);  // positions beyond the end, too
    batch.queries = random_matrix(rng, 40, 6 * 32);
    expect_close(run(batch, what, 1), run_naive(batch, what, best_kernels()));
  }
}

TEST(Attend, ScratchIsReused) {
  Scene scene(two_layers(), 46);
  const Attention what{.layer = 0, .n_heads = 4};
  const Batch batch = scene.batch(what, 4);
  ThreadPool threads(2);
  OpContext ctx;
  ctx.pool = &threads;
  ctx.kernels = &best_kernels();
  const Output with_lse = run_on(ctx, batch, what);
  const float* scratch = ctx.worker_scratch[1].data();
  const Output without = run_on(ctx, batch, what, false);
  EXPECT_EQ(ctx.worker_scratch[1].data(), scratch);
  EXPECT_EQ(without.out.data, with_lse.out.data);
  EXPECT_EQ(without.lse(0, 0), 1e30f);  // not asked for, not written
}

TEST(Attend, EmptyBatch) {
  ThreadPool threads(1);
  OpContext ctx;
  ctx.pool = &threads;
  ctx.kernels = &best_kernels();
  attend(ctx, AttendArgs{.layer = 0,
                         .n_heads = 4,
                         .queries = {},
                         .pos = {},
                         .sequences = {},
                         .scale = 1.0f,
                         .out = {},
                         .lse = {}});
  EXPECT_TRUE(ctx.worker_scratch.empty());
}

}  // namespace
}  // namespace sh::ops
