// SPDX-License-Identifier: MIT
// shorthand logits: the logits of every token of a sequence, for comparisons with other programs.
#include <fmt/format.h>

#include <algorithm>

#include "base/npy.h"
#include "tools/check_outputs.h"
#include "tools/commands.h"

namespace sh::tools {

namespace {

Result<void> run(engine::ProgramParams& params) {
  const auto& ids = params.tool.ids;
  if (ids.empty()) return Error{ErrorKind::invalid_argument, "no tokens given: name them with --ids 1,2,3"};
  if (params.tool.output_path.empty())
    return Error{ErrorKind::invalid_argument, "no output given: name a .npy file with -o FILE"};
  SH_RETURN_IF_ERROR(check_outputs({{"-o", params.tool.output_path}}, {{"-m", params.engine.model_path}}));
  const auto n = static_cast<int64_t>(ids.size());
  if (params.engine.n_ctx == 0) params.engine.n_ctx = n;
  SH_ASSIGN(const auto engine, engine::Engine::open(params.engine));
  const int32_t n_vocab = engine->model().info().n_vocab;
  for (const int32_t id : ids)
    if (id >= n_vocab)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("--ids: token {} is outside the vocabulary of {}", id, n_vocab)};
  if (n > engine->n_ctx())
    return Error{ErrorKind::context_exceeded,
                 fmt::format("{} tokens do not fit a cache of {}; raise -c", n, engine->n_ctx())};
  constexpr int64_t kMaxFloats = int64_t{1} << 32;  // 16 GiB: a slip, not a wish
  if (n * n_vocab > kMaxFloats)
    return Error{ErrorKind::invalid_argument, fmt::format("{} tokens of {} logits would be {:.0f} GiB", n, n_vocab,
                                                          static_cast<double>(n) * n_vocab * 4 / (1 << 30))};

  kv::SequenceCache sequence(engine->block_pool());
  SH_ASSIGN(const Mat<float> logits, engine->prefill(sequence, ids, {.all_logits = true}));
  SH_RETURN_IF_ERROR(write_npy(params.tool.output_path, logits.view()));
  fmt::print("{}: float32 [{}, {}], kernels {}\n", params.tool.output_path, logits.rows, logits.cols,
             engine->kernels().name);
  return {};
}

}  // namespace

int logits_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kLogits, arguments, params)) return *status;
  return exit_status(run(params));
}

}  // namespace sh::tools
