// SPDX-License-Identifier: MIT
// A tap that changes the rows of a layer in the middle of a forward: what layer-sequential compaction stands on.
#include <numeric>

#include "models/model_fixture.h"

namespace sh::models {
namespace {

constexpr int64_t kRegion = 21;  // rows that are changed: one block and a part of the next
constexpr int64_t kContext = 25;

/// Turns the keys of the first kRegion rows of a layer around and doubles their values, in place.
void change_rows(kv::SequenceCache& sequence, int32_t layer) {
  const kv::KvLayout& layout = sequence.pool().layout();
  ASSERT_TRUE(layout.key_type == DType::f32 && layout.value_type == DType::f32);
  const kv::LayerLayout& shape = layout.layers[static_cast<size_t>(layer)];
  for (int32_t head = 0; head < shape.n_heads; ++head)
    for (const kv::BlockEntry& entry : sequence.head(layer, head).blocks) {
      const int64_t n_rows = std::clamp<int64_t>(kv::Pos(kRegion) - entry.first_pos, 0, entry.n_rows);
      float* keys = reinterpret_cast<float*>(sequence.pool().keys(entry.block));
      float* values = reinterpret_cast<float*>(sequence.pool().values(entry.block));
      for (int64_t i = 0; i < n_rows * shape.key_width; ++i) keys[i] = -keys[i];
      for (int64_t i = 0; i < n_rows * shape.value_width; ++i) values[i] *= 2.0f;
    }
}

/// Changes the rows of some layers when it is shown their attention.
struct RowChanger final : Recorder {
  kv::SequenceCache* sequence = nullptr;
  std::vector<int32_t> changed_layers;

  bool on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                    MatView<const float> out) override {
    Recorder::on_attention(layer, queries, lse, out);
    if (std::count(changed_layers.begin(), changed_layers.end(), layer) == 0) return false;
    change_rows(*sequence, layer);
    return true;
  }
};

class TapOfEveryArchitecture : public testing::TestWithParam<const ArchDef*> {
 protected:
  TinyFile tiny{*GetParam(), 7};
  Runner runner{tiny.file};
  std::vector<int32_t> context = random_ids(kContext, 21, runner.model->info().n_vocab);
  std::vector<int32_t> ids = random_ids(19, 22, runner.model->info().n_vocab);
  int32_t n_layer = runner.model->info().n_layer;

  kv::SequenceCache read_context() {
    kv::SequenceCache sequence = runner.new_sequence();
    runner.feed(sequence, context);
    return sequence;
  }
  /// Single layers, and all of them in one forward.
  std::vector<std::vector<int32_t>> layer_choices() const {
    std::vector<std::vector<int32_t>> choices(1, std::vector<int32_t>(static_cast<size_t>(n_layer)));
    std::iota(choices[0].begin(), choices[0].end(), 0);
    for (int32_t layer = 0; layer < n_layer; ++layer) choices.push_back({layer});
    return choices;
  }
};

TEST_P(TapOfEveryArchitecture, RowsChangedOnTheWayActAsIfChangedBefore) {
  kv::SequenceCache plain = read_context();
  Recorder of_plain;
  const Mat<float> untouched = runner.feed(plain, ids, &of_plain);
  for (const std::vector<int32_t>& layers : layer_choices()) {
    kv::SequenceCache prepared = read_context(), tapped = read_context();
    for (const int32_t layer : layers) change_rows(prepared, layer);
    Recorder of_prepared;
    RowChanger tap;
    tap.sequence = &tapped;
    tap.changed_layers = layers;
    const Mat<float> expected = runner.feed(prepared, ids, &of_prepared);
    const Mat<float> logits = runner.feed(tapped, ids, &tap);
    EXPECT_EQ(logits.data, expected.data) << "from layer " << layers[0];
    EXPECT_NE(logits.data, untouched.data) << "from layer " << layers[0];

    ASSERT_EQ(tap.seen.size(), static_cast<size_t>(n_layer)) << "asked once a layer";
    for (size_t layer = 0; layer < tap.seen.size(); ++layer) {
      // Queries are those that the layers before, as changed, give rise to; the output is that of the old rows.
      EXPECT_EQ(tap.seen[layer].queries.data, of_prepared.seen[layer].queries.data) << layer;
      const bool is_changed = std::count(layers.begin(), layers.end(), static_cast<int32_t>(layer)) > 0;
      EXPECT_EQ(tap.seen[layer].out.data == of_prepared.seen[layer].out.data, !is_changed) << layer;
      EXPECT_EQ(tap.seen[layer].lse.data == of_prepared.seen[layer].lse.data, !is_changed) << layer;
    }
    const size_t first = static_cast<size_t>(layers[0]);
    EXPECT_EQ(tap.seen[first].out.data, of_plain.seen[first].out.data);
    for (int32_t layer = 0; layer < n_layer; ++layer) {
      const auto rows = tapped.decode_head(*runner.ctx.kernels, layer, 0);
      const auto wanted = prepared.decode_head(*runner.ctx.kernels, layer, 0);
      EXPECT_EQ(rows.keys.data, wanted.keys.data) << layer;
      EXPECT_EQ(rows.values.data, wanted.values.data) << layer;
    }
    // The next step stands on the same rows.
    EXPECT_EQ(runner.feed(tapped, {ids[0]}).data, runner.feed(prepared, {ids[0]}).data);
  }
}

TEST_P(TapOfEveryArchitecture, OtherSequencesOfTheBatchKeepTheirBits) {
  kv::SequenceCache alone = read_context(), changed = read_context(), beside = read_context();
  const Mat<float> expected = runner.feed(alone, ids);
  RowChanger tap;
  tap.sequence = &changed;
  tap.changed_layers = {0, n_layer - 1};
  const Mat<float> logits = runner.feed_many({&changed, &beside}, {ids, ids}, &tap);
  const auto n = static_cast<int64_t>(ids.size());
  EXPECT_FALSE(std::equal(expected.data.begin(), expected.data.end(), logits.row(0)));
  EXPECT_TRUE(std::equal(expected.data.begin(), expected.data.end(), logits.row(n)));
}

TEST_P(TapOfEveryArchitecture, UnchangedRowsChangeNoBit) {
  kv::SequenceCache plain = read_context(), watched = read_context();
  RowChanger tap;  // returns false for every layer
  EXPECT_EQ(runner.feed(watched, ids, &tap).data, runner.feed(plain, ids).data);
  EXPECT_EQ(tap.seen.size(), static_cast<size_t>(n_layer));
}

INSTANTIATE_TEST_SUITE_P(Arch, TapOfEveryArchitecture,
                         testing::ValuesIn(architectures().begin(), architectures().end()),
                         [](const auto& arch) { return std::string(arch.param->gguf_name); });

}  // namespace
}  // namespace sh::models
