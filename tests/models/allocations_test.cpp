// SPDX-License-Identifier: MIT
// A decoded token allocates nothing: all buffers are kept from step to step.
#include "counted_new.h"
#include "models/model_fixture.h"

namespace sh::models {
namespace {

class Allocations : public testing::TestWithParam<const char*> {};

TEST_P(Allocations, ADecodedTokenMakesNone) {
  constexpr int64_t kWarmUp = 70, kTokens = 64;
  const gguf::File file = open_golden(std::string(GetParam()) + ".gguf");
  for (const int n_threads : {1, 2})
    for (const size_t n_sequences : {1, 3}) {
      Runner runner(file, kernels::choose_kernels("").value(), n_threads, DType::f16);
      std::vector<kv::SequenceCache> caches;
      for (size_t s = 0; s < n_sequences; ++s) caches.push_back(runner.new_sequence());
      std::vector<int32_t> ids(n_sequences), rows(n_sequences);
      std::vector<kv::Pos> pos(n_sequences);
      std::vector<kv::SequenceCache*> owners(n_sequences);
      Mat<float> logits(static_cast<int64_t>(n_sequences), runner.model->info().n_vocab);
      int64_t n_within_blocks = 0, n_all = 0;
      for (int64_t token = 0; token < kWarmUp + kTokens; ++token) {
        for (size_t s = 0; s < n_sequences; ++s) {
          ids[s] = static_cast<int32_t>((7 * token + static_cast<int64_t>(s)) % logits.cols);
          rows[s] = static_cast<int32_t>(s);
          pos[s] = caches[s].next_pos();
          owners[s] = &caches[s];
        }
        const int64_t before = n_allocations;
        const auto done =
            run_batch(*runner.model, runner.ctx, runner.workspace,
                      {.ids = ids, .pos = pos, .sequences = owners, .logit_rows = rows}, logits.view());
        const int64_t n = n_allocations - before;
        ASSERT_TRUE(done.ok());
        if (token < kWarmUp) continue;
        n_all += n;
        if (token % kv::kBlockRows != 0) n_within_blocks += n;
      }
      // New blocks make lists longer: each doubles at most once between token 70 and 134. A worker that the
      // machine has not run before meets all of its scratch late.
      const int64_t n_lists = runner.pool->layout().n_heads_total() * static_cast<int64_t>(n_sequences);
      EXPECT_LE(n_all, n_lists + 16) << n_threads << " threads, " << n_sequences << " conversations";
      if (n_threads == 1) {
        EXPECT_EQ(n_within_blocks, 0) << n_sequences << " conversations";
      }
    }
}

INSTANTIATE_TEST_SUITE_P(Golden, Allocations,
                         testing::Values("llama", "llama-q.Q4_0", "llama-moe", "llama-yarn", "qwen2", "qwen3"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
                           return name;
                         });

}  // namespace
}  // namespace sh::models
