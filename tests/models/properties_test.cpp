// SPDX-License-Identifier: MIT
// What holds for every architecture, on its toy file: batching and threads change no bit, and the tap sees the
// attention that was computed.
#include <optional>

#include "models/model_fixture.h"

namespace sh::models {
namespace {

class EveryArchitecture : public testing::TestWithParam<const ArchDef*> {
 protected:
  TinyFile tiny{*GetParam(), 7};
};

TEST_P(EveryArchitecture, ToyFileLoadsAndDescribesItself) {
  const Runner runner(tiny.file);
  const ModelInfo& info = runner.model->info();
  EXPECT_EQ(info.arch, GetParam()->gguf_name);
  EXPECT_EQ(info.file_type, "F16");
  EXPECT_EQ(static_cast<int64_t>(runner.model->kv_layers().size()), info.n_layer);
  EXPECT_EQ(info.weight_bytes, tiny.file.total_tensor_bytes());
  EXPECT_GT(info.n_params, 0);
  EXPECT_EQ(GetParam()->tiny(7).value(), tiny.bytes) << "the same seed gives the same file";
  EXPECT_NE(GetParam()->tiny(8).value(), tiny.bytes);
}

TEST_P(EveryArchitecture, PrefillEqualsDecodesBitwise) {
  for (const kernels::KernelSet* set : supported_kernels()) {
    Runner runner(tiny.file, set);
    const std::vector<int32_t> ids = random_ids(37, 1, runner.model->info().n_vocab);
    kv::SequenceCache whole = runner.new_sequence(), stepped = runner.new_sequence();
    const Mat<float> expected = runner.feed(whole, ids);
    for (size_t t = 0; t < ids.size(); ++t) {
      const Mat<float> row = runner.feed(stepped, {ids[t]});
      ASSERT_TRUE(std::equal(row.data.begin(), row.data.end(), expected.row(static_cast<int64_t>(t))))
          << set->name << " token " << t;
    }
  }
}

TEST_P(EveryArchitecture, BatchEqualsSinglesBitwise) {
  for (const kernels::KernelSet* set : supported_kernels()) {
    Runner runner(tiny.file, set);
    const int64_t n_vocab = runner.model->info().n_vocab;
    const std::vector<std::vector<int32_t>> parts = {random_ids(5, 2, n_vocab), random_ids(1, 3, n_vocab),
                                                     random_ids(29, 4, n_vocab)};
    std::vector<kv::SequenceCache> single, joint;
    std::vector<kv::SequenceCache*> joint_pointers;
    for (int i = 0; i < 3; ++i) {
      single.push_back(runner.new_sequence());
      joint.push_back(runner.new_sequence());
    }
    for (kv::SequenceCache& sequence : joint) joint_pointers.push_back(&sequence);
    for (int round = 0; round < 2; ++round) {  // the second one stands on caches that a batch has written
      const Mat<float> together = runner.feed_many(joint_pointers, parts);
      int64_t at = 0;
      for (size_t s = 0; s < parts.size(); ++s) {
        const Mat<float> alone = runner.feed(single[s], parts[s]);
        EXPECT_TRUE(std::equal(alone.data.begin(), alone.data.end(), together.row(at)))
            << set->name << " part " << s;
        at += alone.rows;
      }
    }
  }
}

TEST_P(EveryArchitecture, ThreadsChangeNoBit) {
  for (const kernels::KernelSet* set : supported_kernels()) {
    std::optional<Mat<float>> expected;
    for (const int n_threads : {1, 3}) {
      Runner runner(tiny.file, set, n_threads);
      kv::SequenceCache sequence = runner.new_sequence();
      const Mat<float> logits = runner.feed(sequence, random_ids(96, 5, runner.model->info().n_vocab));
      if (!expected) expected = logits;
      EXPECT_EQ(expected->data, logits.data) << set->name;
    }
  }
}

TEST_P(EveryArchitecture, KernelSetsAgreeWithGeneric) {
  std::optional<Mat<float>> expected;
  for (const kernels::KernelSet* set : kernels::kernel_sets()) {
    if (std::string_view(set->name) != "generic") continue;
    Runner runner(tiny.file, set);
    kv::SequenceCache sequence = runner.new_sequence();
    expected = runner.feed(sequence, random_ids(40, 6, runner.model->info().n_vocab));
  }
  ASSERT_TRUE(expected.has_value());
  for (const kernels::KernelSet* set : supported_kernels()) {
    Runner runner(tiny.file, set);
    kv::SequenceCache sequence = runner.new_sequence();
    const Difference d =
        compare(*expected, runner.feed(sequence, random_ids(40, 6, runner.model->info().n_vocab)));
    EXPECT_LT(d.max, 1e-3) << set->name;  // logits of deviation 3; f16 weights and f32 sums in another order
  }
}

TEST_P(EveryArchitecture, CapturedQueriesReproduceTheModelsAttention) {
  Runner runner(tiny.file);
  kv::SequenceCache sequence = runner.new_sequence();
  const int64_t n = 30;
  Recorder tap;
  const std::vector<int32_t> ids = random_ids(n, 9, runner.model->info().n_vocab);
  runner.feed(sequence, {ids.begin(), ids.begin() + 11});
  runner.feed(sequence, {ids.begin() + 11, ids.end()}, &tap);  // the queries see rows of an earlier batch, too
  const std::vector<kv::LayerLayout> layout = runner.model->kv_layers();
  ASSERT_EQ(tap.seen.size(), layout.size());
  for (const Recorder::Seen& seen : tap.seen) {
    const kv::LayerLayout& shape = layout[static_cast<size_t>(seen.layer)];
    const int32_t n_heads = runner.model->n_query_heads(seen.layer);
    const double scale = runner.model->attention_scale(seen.layer);
    double largest_gap = 0.0, largest_lse_gap = 0.0;
    for (int32_t h = 0; h < n_heads; ++h) {
      const auto rows = sequence.decode_head(*runner.ctx.kernels, seen.layer, h / (n_heads / shape.n_heads));
      for (int64_t t = 0; t < seen.queries.rows; ++t) {
        const float* query = seen.queries.row(t) + h * shape.key_width;
        double sum = 0.0;
        std::vector<double> expected(static_cast<size_t>(shape.value_width));
        for (int64_t r = 0; r <= 11 + t; ++r) {
          double score = 0.0;
          for (int32_t i = 0; i < shape.key_width; ++i) score += double{query[i]} * rows.keys(r, i);
          const double weight = std::exp(scale * score);
          sum += weight;
          for (int32_t i = 0; i < shape.value_width; ++i)
            expected[static_cast<size_t>(i)] += weight * rows.values(r, i);
        }
        for (int32_t i = 0; i < shape.value_width; ++i)
          largest_gap = std::max(largest_gap, std::abs(expected[static_cast<size_t>(i)] / sum -
                                                       seen.out.row(t)[h * shape.value_width + i]));
        largest_lse_gap = std::max(largest_lse_gap, std::abs(std::log(sum) - seen.lse(t, h)));
      }
    }
    EXPECT_LT(largest_gap, 1e-4) << "layer " << seen.layer;  // outputs of size 1, sums of f32 against f64
    EXPECT_LT(largest_lse_gap, 1e-4) << "layer " << seen.layer;
  }
}

TEST_P(EveryArchitecture, TapSeesOnlyTheLayersItWantsAndChangesNothing) {
  Runner runner(tiny.file);
  kv::SequenceCache plain = runner.new_sequence(), tapped = runner.new_sequence();
  const std::vector<int32_t> ids = random_ids(9, 10, runner.model->info().n_vocab);
  Recorder tap;
  tap.only_layer = 1;
  EXPECT_EQ(runner.feed(plain, ids).data, runner.feed(tapped, ids, &tap).data);
  ASSERT_EQ(tap.seen.size(), 1u);
  EXPECT_EQ(tap.seen[0].layer, 1);
}

TEST_P(EveryArchitecture, LayersWithAWindowSeeNoFurther) {
  Runner runner(tiny.file);
  runner.set_windows({4, 4, 4});
  const std::vector<int32_t> ids = random_ids(40, 15, runner.model->info().n_vocab);
  std::vector<int32_t> others = ids;
  others[3] = (ids[3] + 1) % runner.model->info().n_vocab;
  kv::SequenceCache sequence = runner.new_sequence(), other = runner.new_sequence();
  const Mat<float> logits = runner.feed(sequence, ids), changed = runner.feed(other, others);
  for (int64_t t = 0; t < 40; ++t) {
    const bool is_reached = t >= 3 && t <= 3 + 3 * 3;  // each of three layers looks three tokens back
    EXPECT_EQ(std::equal(logits.row(t), logits.row(t) + logits.cols, changed.row(t)), !is_reached) << t;
  }
}

TEST_P(EveryArchitecture, OnlyWantedRowsGetLogits) {
  Runner runner(tiny.file);
  kv::SequenceCache all = runner.new_sequence(), some = runner.new_sequence();
  const std::vector<int32_t> ids = random_ids(12, 11, runner.model->info().n_vocab);
  const Mat<float> expected = runner.feed(all, ids);
  const std::vector<int32_t> rows = {0, 7, 11};
  std::vector<kv::Pos> pos;
  for (int64_t t = 0; t < 12; ++t) pos.push_back(kv::Pos(t));
  const std::vector<kv::SequenceCache*> owners(12, &some);
  Mat<float> logits(3, runner.model->info().n_vocab);
  ASSERT_TRUE(run_batch(*runner.model, runner.ctx, runner.workspace,
                        {.ids = ids, .pos = pos, .sequences = owners, .logit_rows = rows}, logits.view())
                  .ok());
  for (int64_t i = 0; i < 3; ++i)
    EXPECT_TRUE(std::equal(logits.row(i), logits.row(i) + logits.cols, expected.row(rows[static_cast<size_t>(i)])))
        << rows[static_cast<size_t>(i)];
  EXPECT_EQ(some.next_pos(), kv::Pos(12));
}

TEST_P(EveryArchitecture, FullPoolChangesNoSequence) {
  Runner runner(tiny.file);
  kv::KvLayout layout = runner.pool->layout();
  runner.pool =
      kv::BlockPool::create(layout, layout.bytes_per_token() * kv::kBlockRows * 3).value();  // three blocks a head
  kv::SequenceCache small = runner.new_sequence(), large = runner.new_sequence();
  const int64_t n_vocab = runner.model->info().n_vocab;
  runner.feed(small, random_ids(4, 12, n_vocab));
  const std::vector<int32_t> ids =
      random_ids(45, 13, n_vocab);  // 20 more of the first fill two blocks, 25 want two others
  std::vector<kv::Pos> pos;
  std::vector<kv::SequenceCache*> owners;
  for (int64_t t = 0; t < 45; ++t) {
    pos.push_back(t < 20 ? kv::Pos(4 + t) : kv::Pos(t - 20));
    owners.push_back(t < 20 ? &small : &large);
  }
  const kv::CacheUsage before = small.usage();
  const Result<void> done =
      run_batch(*runner.model, runner.ctx, runner.workspace, {.ids = ids, .pos = pos, .sequences = owners}, {});
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().kind, ErrorKind::out_of_memory);
  EXPECT_EQ(small.next_pos(), kv::Pos(4));
  EXPECT_EQ(large.next_pos(), kv::Pos(0));
  EXPECT_EQ(small.usage().n_blocks, before.n_blocks);
  EXPECT_EQ(large.usage().n_blocks, 0);
  runner.feed(small, random_ids(20, 14, n_vocab));  // still works
}

TEST_P(EveryArchitecture, TokenOutsideTheVocabularyIsAnError) {
  Runner runner(tiny.file);
  kv::SequenceCache sequence = runner.new_sequence();
  for (const int32_t id : {-1, runner.model->info().n_vocab}) {
    const std::vector<int32_t> ids = {id};
    const std::vector<kv::Pos> pos = {kv::Pos(0)};
    const std::vector<kv::SequenceCache*> owners = {&sequence};
    const Result<void> done =
        run_batch(*runner.model, runner.ctx, runner.workspace, {.ids = ids, .pos = pos, .sequences = owners}, {});
    ASSERT_FALSE(done.ok());
    EXPECT_EQ(done.error().kind, ErrorKind::invalid_argument);
    EXPECT_EQ(sequence.next_pos(), kv::Pos(0));
  }
}

INSTANTIATE_TEST_SUITE_P(Arch, EveryArchitecture,
                         testing::ValuesIn(architectures().begin(), architectures().end()),
                         [](const auto& arch) { return std::string(arch.param->gguf_name); });

}  // namespace
}  // namespace sh::models
