// SPDX-License-Identifier: MIT
#include <cmath>

#include "compaction/method.h"
#include "engine/compact_sequence.h"
#include "engine/reference_queries.h"
#include "engine/scribe.h"

namespace sh::engine {
namespace {

constexpr int64_t kLargeCap = int64_t{64} << 20;

/// Reads ids with every query captured, in forwards of n_ubatch tokens.
void read_captured(Engine& engine, kv::SequenceCache& sequence, std::span<const int32_t> ids,
                   QueryCapture& capture, int64_t n_ubatch) {
  for (size_t at = 0; at < ids.size(); at += static_cast<size_t>(n_ubatch)) {
    const auto piece = ids.subspan(at, std::min(static_cast<size_t>(n_ubatch), ids.size() - at));
    std::vector<kv::Pos> pos;
    for (size_t i = 0; i < piece.size(); ++i) pos.push_back(sequence.next_pos() + static_cast<int64_t>(i));
    const std::vector<kv::SequenceCache*> sequences(piece.size(), &sequence);
    capture.begin_batch(pos);
    ASSERT_TRUE(engine.forward({piece, pos, sequences, {}}, MatView<float>(), &capture).ok());
  }
}

/// The worst differences between what was captured and attention in double over the cache's decoded rows: of lse,
/// and of outputs relative to the largest output.
struct Deviation {
  double lse = 0, out = 0;
  int64_t n_queries = 0;
};
Deviation deviation_of(Engine& engine, const kv::SequenceCache& sequence, const QuerySets& sets) {
  Deviation worst;
  for (size_t layer = 0; layer < sets.size(); ++layer)
    for (size_t head = 0; head < sets[layer].size(); ++head) {
      const QuerySet& set = sets[layer][head];
      const auto rows =
          sequence.decode_head(engine.kernels(), static_cast<int32_t>(layer), static_cast<int32_t>(head));
      const double scale = engine.model().attention_scale(static_cast<int32_t>(layer));
      for (int64_t q = 0; q < set.queries.rows; ++q, ++worst.n_queries) {
        double sum = 0;
        std::vector<double> out(static_cast<size_t>(set.out.cols), 0.0);
        for (size_t r = 0; r < rows.pos.size(); ++r) {
          if (rows.pos[r].value > set.pos[static_cast<size_t>(q)]) continue;
          double score = 0;
          for (int64_t i = 0; i < set.queries.cols; ++i)
            score += double{set.queries(q, i)} * rows.keys(static_cast<int64_t>(r), i);
          const double weight = std::exp(score * scale + rows.bias[r]);
          sum += weight;
          for (size_t i = 0; i < out.size(); ++i)
            out[i] += weight * rows.values(static_cast<int64_t>(r), static_cast<int64_t>(i));
        }
        double difference = 0, norm = 0;
        for (size_t i = 0; i < out.size(); ++i) {
          difference += std::pow(out[i] / sum - set.out(q, static_cast<int64_t>(i)), 2);
          norm += std::pow(out[i] / sum, 2);
        }
        worst.lse = std::max(worst.lse, std::fabs(std::log(sum) - set.lse[static_cast<size_t>(q)]));
        worst.out = std::max(worst.out, std::sqrt(difference / norm));
      }
    }
  return worst;
}

// Both sides read the same decoded rows; what is left is float32 accumulation and, in some kernel sets, queries
// rounded to 16 bits.
constexpr double kTolerance = 1e-3;

TEST(QueryCapture, ReproducesTheModelsAttention) {
  for (const DType type : {DType::f32, DType::f16, DType::q8_0}) {
    const auto engine = open_scribe({.n_ctx = 512, .type_k = type, .type_v = type});
    const std::vector<int32_t> ids = document_ids(*engine, read_document("512", 0));
    kv::SequenceCache sequence(engine->block_pool());
    QueryCapture capture(engine->model(), engine->kv_layout(), int64_t{4} << 20);
    read_captured(*engine, sequence, ids, capture, 100);
    const Deviation deviation = deviation_of(*engine, sequence, capture.take(engine->executor().thread_pool()));
    EXPECT_EQ(deviation.n_queries, capture.n_tokens() * 5 * 4);  // 5 layers of 4 query heads
    EXPECT_GT(capture.n_tokens(), 100);
    EXPECT_LT(deviation.lse, kTolerance) << tensor_format(type).name;
    EXPECT_LT(deviation.out, kTolerance) << tensor_format(type).name;
  }
}

TEST(QueryCapture, ReproducesAttentionOfEveryTinyModel) {
  for (const char* name :
       {"llama", "llama-bias", "llama-hd32", "llama-moe", "llama-yarn", "llama-ropefreqs", "qwen2", "qwen3"}) {
    EngineOptions options{.n_ctx = 128, .n_threads = 1, .type_k = DType::f32, .type_v = DType::f32};
    options.model_path = std::string(SH_SOURCE_DIR) + "/tests/golden/" + name + ".gguf";
    auto engine = Engine::open(options);
    ASSERT_TRUE(engine.ok()) << engine.error().message;
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 40; ++i) ids.push_back(i * 37 % (*engine)->model().info().n_vocab);
    kv::SequenceCache sequence((*engine)->block_pool());
    QueryCapture capture((*engine)->model(), (*engine)->kv_layout(), kLargeCap);
    read_captured(**engine, sequence, ids, capture, 16);
    ASSERT_EQ(capture.n_tokens(), 40) << name;
    const Deviation deviation = deviation_of(**engine, sequence, capture.take((*engine)->executor().thread_pool()));
    EXPECT_LT(deviation.lse, kTolerance) << name;
    EXPECT_LT(deviation.out, kTolerance) << name;
  }
}

// Rows with biases and gaps between their positions are attended by the same rule.
TEST(QueryCapture, ReproducesAttentionOverCompactedRows) {
  const auto engine = open_scribe({.n_ctx = 512});
  const Document document = read_document("512", 0);
  const std::vector<int32_t> ids = document_ids(*engine, document);
  kv::SequenceCache sequence(engine->block_pool());
  ASSERT_TRUE(engine->prefill(sequence, ids).ok());
  CompactionRequest request{.method = "solver", .ratio = 4};
  ASSERT_TRUE(compact_sequence(engine->executor(), sequence, ids, nullptr, request).ok());
  QueryCapture capture(engine->model(), engine->kv_layout(), kLargeCap);
  read_captured(*engine, sequence, question_ids(*engine, document.questions[0].text), capture, 8);
  const Deviation deviation = deviation_of(*engine, sequence, capture.take(engine->executor().thread_pool()));
  EXPECT_GT(deviation.n_queries, 0);
  EXPECT_LT(deviation.lse, kTolerance);
  EXPECT_LT(deviation.out, kTolerance);
}

// ---- the reservoir, with made-up attention ----

/// Announces tokens [begin, begin + n) and shows numbers that name their token.
class Feeder {
 public:
  Feeder(const Engine& engine, int64_t max_bytes)
      : capture(engine.model(), engine.kv_layout(), max_bytes), layers_(engine.kv_layout().layers) {}

  void announce(int32_t begin, int32_t n, int64_t first_label = -1) {
    std::vector<kv::Pos> pos;
    std::vector<int64_t> labels;
    for (int32_t i = 0; i < n; ++i) pos.push_back(kv::Pos(begin + i));
    for (int32_t i = 0; i < n && first_label >= 0; ++i) labels.push_back(first_label + i);
    capture.begin_batch(pos, {}, labels);
  }
  void feed(int32_t begin, int32_t n, int64_t first_label = -1) {
    announce(begin, n, first_label);
    constexpr int32_t kHeads = 4;
    Mat<float> queries(n, kHeads * 64), lse(n, kHeads), out(n, kHeads * 64);
    for (int32_t l = 0; l < static_cast<int32_t>(layers_.size()); ++l) {
      if (!capture.wants_layer(l)) continue;
      for (int32_t i = 0; i < n; ++i)
        for (int32_t h = 0; h < kHeads; ++h) {
          std::fill_n(queries.row(i) + h * 64, 64, name_of(begin + i, l, h));
          lse(i, h) = name_of(begin + i, l, h) + 0.25f;
          std::fill_n(out.row(i) + h * 64, 64, name_of(begin + i, l, h) + 0.5f);
        }
      capture.on_attention(l, queries.view(), lse.view(), out.view());
    }
  }
  static float name_of(int32_t token, int32_t layer, int32_t head) {
    return static_cast<float>(token * 100 + layer * 10 + head);
  }

  std::vector<int32_t> positions() const {
    const QuerySets sets = capture.take(threads_);
    std::vector<int32_t> tokens;
    for (size_t i = 0; i < sets[0][0].pos.size(); i += 2)
      tokens.push_back(sets[0][0].pos[i]);  // two query heads a KV head
    return tokens;
  }
  /// Every captured number belongs to the token, layer and head that it is filed under.
  bool is_consistent() const {
    const QuerySets sets = capture.take(threads_);
    for (size_t l = 0; l < sets.size(); ++l)
      for (size_t h = 0; h < sets[l].size(); ++h) {
        const QuerySet& set = sets[l][h];
        for (int64_t q = 0; q < set.queries.rows; ++q) {
          const float name = name_of(set.pos[static_cast<size_t>(q)], static_cast<int32_t>(l),
                                     static_cast<int32_t>(h) * 2 + static_cast<int32_t>(q % 2));
          if (set.queries(q, 63) != name || set.lse[static_cast<size_t>(q)] != name + 0.25f ||
              set.out(q, 0) != name + 0.5f)
            return false;
        }
      }
    return true;
  }

  QueryCapture capture;

 private:
  std::vector<kv::LayerLayout> layers_;
  mutable ThreadPool threads_{2};
};

// A token takes 5 layers · 4 heads · (64 + 1 + 64) floats and 12 bytes: a cap of 50 tokens and a bit.
constexpr int64_t kTokenBytes = 5 * 4 * 129 * 4 + 12;
constexpr int64_t kSmallCap = 50 * kTokenBytes + 1000;

TEST(QueryCapture, StaysUnderItsBoundWithAnEvenSpread) {
  const auto engine = open_scribe({.n_ctx = 64, .n_threads = 1});
  Feeder feeder(*engine, kSmallCap);
  for (int32_t at = 0; at < 5000;) {
    const int32_t n = std::min(5000 - at, 1 + at % 83);
    feeder.feed(at, n);
    at += n;
    ASSERT_LE(feeder.capture.n_bytes(), kSmallCap);
    ASSERT_LE(feeder.capture.n_tokens(), 50);
    ASSERT_GE(feeder.capture.n_tokens(), std::min(at, 25));
  }
  const std::vector<int32_t> tokens = feeder.positions();
  const int32_t stride = 128;  // 5000 / 50 rounded up to a power of two
  ASSERT_EQ(tokens.size(), 40u);
  for (size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(tokens[i], stride * static_cast<int32_t>(i));
  EXPECT_TRUE(feeder.is_consistent());
}

TEST(QueryCapture, DoesNotDependOnTheBatches) {
  const auto engine = open_scribe({.n_ctx = 64, .n_threads = 1});
  Feeder whole(*engine, kSmallCap), single(*engine, kSmallCap);
  whole.feed(0, 777);
  for (int32_t i = 0; i < 777; ++i) single.feed(i, 1);
  EXPECT_EQ(whole.positions(), single.positions());
  EXPECT_TRUE(whole.is_consistent());
  EXPECT_TRUE(single.is_consistent());
}

// Two conversations one after the other and side by side, thinned to less than half.
TEST(QueryCapture, LabelsDecideWhatIsKeptAndItsOrder) {
  const auto engine = open_scribe({.n_ctx = 64, .n_threads = 1});
  Feeder one_by_one(*engine, kSmallCap), together(*engine, kSmallCap);
  constexpr int64_t kFirst = 16411, kSecond = 2 * 16411;
  one_by_one.feed(200, 60, kFirst);
  one_by_one.feed(0, 63, kSecond);
  for (int32_t i = 0; i < 63; ++i) {
    together.feed(i, 1, kSecond + i);
    if (i < 60 && i % 5 == 0) together.feed(200 + i, 5, kFirst + i);
  }
  const std::vector<int32_t> tokens = one_by_one.positions();
  EXPECT_EQ(tokens, together.positions());
  EXPECT_TRUE(one_by_one.is_consistent());
  EXPECT_TRUE(together.is_consistent());
  ASSERT_GE(tokens.size(), 25u);
  ASSERT_LE(tokens.size(), 50u);
  EXPECT_GE(tokens.front(), 200);
  EXPECT_LT(tokens.back(), 63);
  EXPECT_TRUE(std::is_sorted(tokens.begin(), tokens.end(),
                             [](int32_t a, int32_t b) { return std::pair(a < 200, a) < std::pair(b < 200, b); }));
}

TEST(QueryCapture, RealQueriesDoNotDependOnTheUbatch) {
  const auto engine = open_scribe({.n_ctx = 512});
  const std::vector<int32_t> ids = document_ids(*engine, read_document("512", 1));
  QuerySets sets[2];
  for (int side = 0; side < 2; ++side) {
    kv::SequenceCache sequence(engine->block_pool());
    QueryCapture capture(engine->model(), engine->kv_layout(), kSmallCap);
    read_captured(*engine, sequence, ids, capture, side == 0 ? 512 : 19);
    sets[side] = capture.take(engine->executor().thread_pool());
  }
  for (size_t l = 0; l < sets[0].size(); ++l)
    for (size_t h = 0; h < sets[0][l].size(); ++h) {
      EXPECT_EQ(sets[0][l][h].pos, sets[1][l][h].pos);
      EXPECT_EQ(sets[0][l][h].queries.data, sets[1][l][h].queries.data) << "layer " << l;
      EXPECT_EQ(sets[0][l][h].lse, sets[1][l][h].lse) << "layer " << l;
    }
}

TEST(QueryCapture, TruncateForgetsTheCutTokens) {
  const auto engine = open_scribe({.n_ctx = 64, .n_threads = 1});
  Feeder feeder(*engine, kSmallCap);
  feeder.feed(0, 45);
  feeder.capture.truncate(kv::Pos(30));
  EXPECT_EQ(feeder.capture.n_tokens(), 30);
  feeder.feed(30, 10);
  const std::vector<int32_t> tokens = feeder.positions();
  ASSERT_EQ(tokens.size(), 40u);
  for (int32_t i = 0; i < 40; ++i) EXPECT_EQ(tokens[static_cast<size_t>(i)], i);
  EXPECT_TRUE(feeder.is_consistent());
  feeder.capture.clear();
  EXPECT_EQ(feeder.capture.n_tokens(), 0);
  feeder.feed(0, 3);
  EXPECT_EQ(feeder.positions(), (std::vector<int32_t>{0, 1, 2}));
}

TEST(QueryCapture, AForwardThatDidNotRunLeavesNoTrace) {
  const auto engine = open_scribe({.n_ctx = 64, .n_threads = 1});
  Feeder feeder(*engine, kSmallCap);
  feeder.feed(0, 40);
  for (const int32_t n : {5, 100}) {  // without and with a stride that doubles
    feeder.announce(40, n);
    feeder.capture.abort_batch();
    EXPECT_FALSE(feeder.capture.wants_layer(0));
    for (const int32_t token : feeder.positions()) EXPECT_LT(token, 40);
    EXPECT_TRUE(feeder.is_consistent());
  }
  feeder.feed(40, 60);
  EXPECT_TRUE(feeder.is_consistent());
  const std::vector<int32_t> tokens = feeder.positions();
  for (size_t i = 1; i < tokens.size(); ++i) EXPECT_EQ(tokens[i] - tokens[i - 1], tokens[1] - tokens[0]);
}

TEST(QueryCapture, UnwantedTokensAndNoMemoryCaptureNothing) {
  const auto engine = open_scribe({.n_ctx = 64, .n_threads = 1});
  QueryCapture capture(engine->model(), engine->kv_layout(), kSmallCap);
  const kv::Pos pos[] = {kv::Pos(int64_t{0}), kv::Pos(1), kv::Pos(2)};
  const bool is_wanted[] = {false, true, false};
  capture.begin_batch(pos, is_wanted);
  EXPECT_EQ(capture.n_tokens(), 1);
  EXPECT_EQ(capture.take(engine->executor().thread_pool())[0][0].pos[0], 1);
  QueryCapture none(engine->model(), engine->kv_layout(), 100);
  none.begin_batch(pos);
  EXPECT_EQ(none.n_tokens(), 0);
  EXPECT_FALSE(none.wants_layer(0));
}

}  // namespace
}  // namespace sh::engine
