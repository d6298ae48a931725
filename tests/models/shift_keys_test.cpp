// SPDX-License-Identifier: MIT
// Keys moved to other positions are the keys that the model computes there.
#include "models/model_fixture.h"

namespace sh::models {
namespace {

using DecodedHead = kv::SequenceCache::DecodedHead;

double largest_gap(const Mat<float>& a, const Mat<float>& b) {
  return compare(a, b).max;
}

/// Layer 0: one token again and again, so that its keys differ by position only and any row can be moved to any
/// other.
void check_every_pair_of_positions(Runner& runner) {
  constexpr int64_t kRows = 33;
  kv::SequenceCache sequence = runner.new_sequence();
  runner.feed(sequence, std::vector<int32_t>(kRows, 5));
  for (int32_t head = 0; head < runner.model->kv_layers()[0].n_heads; ++head) {
    const Mat<float> keys = sequence.decode_head(*runner.ctx.kernels, 0, head).keys;
    for (int64_t target = 0; target < kRows; ++target) {
      Mat<float> moved = keys, expected = keys;
      std::vector<int32_t> deltas;
      for (int64_t row = 0; row < kRows; ++row) {
        deltas.push_back(static_cast<int32_t>(target - row));
        std::copy_n(keys.row(target), keys.cols, expected.row(row));
      }
      runner.model->shift_keys(0, deltas, moved.view());
      EXPECT_LT(largest_gap(moved, expected), 1e-5) << "head " << head << " to position " << target;
      EXPECT_TRUE(std::equal(moved.row(target), moved.row(target) + moved.cols, keys.row(target)));
    }
  }
}

/// All layers: the same text read at a later place, with nothing before it, differs by the rotation of its keys.
void check_a_text_read_later(Runner& runner) {
  constexpr int32_t kStart = 3000;
  const std::vector<int32_t> ids = random_ids(24, 31, runner.model->info().n_vocab);
  kv::SequenceCache early = runner.new_sequence(), late = runner.new_sequence();
  std::vector<std::vector<kv::HeadRows>> no_rows;
  for (const kv::LayerLayout& layer : runner.model->kv_layers())
    no_rows.emplace_back(static_cast<size_t>(layer.n_heads));
  const Result<void> moved_on =
      late.restore(no_rows, {.next_pos = kv::Pos(kStart),
                             .compacted_end = kv::Pos(0),
                             .n_compactions = 0,
                             .dropped_end = std::vector<kv::Pos>(no_rows.size(), kv::Pos(0))});
  ASSERT_TRUE(moved_on.ok()) << moved_on.error().message;
  runner.feed(early, ids);
  runner.feed(late, ids);
  for (int32_t layer = 0; layer < runner.model->info().n_layer; ++layer) {
    const DecodedHead from = early.decode_head(*runner.ctx.kernels, layer, 0);
    const DecodedHead to = late.decode_head(*runner.ctx.kernels, layer, 0);
    ASSERT_EQ(to.pos[0], kv::Pos(kStart));
    Mat<float> forth = from.keys, back = to.keys;
    runner.model->shift_keys(layer, std::vector<int32_t>(ids.size(), kStart), forth.view());
    runner.model->shift_keys(layer, std::vector<int32_t>(ids.size(), -kStart), back.view());
    // Keys of size 1. In layer 0 only the rounding of a rotation, later that of layers before, too.
    const double tolerance = layer == 0 ? 1e-5 : 1e-4;
    EXPECT_LT(largest_gap(forth, to.keys), tolerance) << layer;
    EXPECT_LT(largest_gap(back, from.keys), tolerance) << layer;
    EXPECT_GT(largest_gap(from.keys, to.keys), 0.1) << layer;
  }
}

class ShiftKeysOfEveryArchitecture : public testing::TestWithParam<const ArchDef*> {};

TEST_P(ShiftKeysOfEveryArchitecture, AreTheKeysOfTheOtherPosition) {
  const TinyFile tiny(*GetParam(), 7);
  Runner runner(tiny.file);
  check_every_pair_of_positions(runner);
  check_a_text_read_later(runner);
}

INSTANTIATE_TEST_SUITE_P(Arch, ShiftKeysOfEveryArchitecture,
                         testing::ValuesIn(architectures().begin(), architectures().end()),
                         [](const auto& arch) { return std::string(arch.param->gguf_name); });

TEST(ShiftKeys, FollowTheFilesRopeScaling) {
  for (const char* name : {"llama-ropefreqs.gguf", "llama-yarn.gguf"}) {
    SCOPED_TRACE(name);
    Runner runner(open_golden(name));
    check_every_pair_of_positions(runner);
    check_a_text_read_later(runner);
  }
}

}  // namespace
}  // namespace sh::models
