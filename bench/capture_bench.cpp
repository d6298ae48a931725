// SPDX-License-Identifier: MIT
// What capturing reference queries costs a prefill: the same tokens with and without the capture, in turn, as a ratio of medians.
//   capture_bench MODEL.gguf [N_TOKENS=1024] [REPEATS=15] [CAPTURE_MIB=64] [STRIDE=8]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/reference_queries.h"
#include "program.h"

namespace {

using namespace sh;
using sh::bench::median;

/// Seconds of one prefill from an empty cache.
double prefill_seconds(engine::Engine& engine, std::span<const int32_t> ids, engine::QueryCapture* capture) {
  kv::SequenceCache sequence(engine.block_pool());
  const auto n_step = static_cast<size_t>(engine.options().n_ubatch);
  const Stopwatch watch;
  for (size_t at = 0; at < ids.size(); at += n_step) {
    const auto piece = ids.subspan(at, std::min(n_step, ids.size() - at));
    if (capture != nullptr) {
      std::vector<kv::Pos> pos;
      for (size_t i = 0; i < piece.size(); ++i) pos.push_back(sequence.next_pos() + static_cast<int64_t>(i));
      capture->begin_batch(pos);
    }
    if (!engine.prefill(sequence, piece, {.tap = capture}).ok()) std::abort();
  }
  return watch.seconds();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: capture_bench MODEL.gguf [N_TOKENS] [REPEATS] [CAPTURE_MIB] [STRIDE]\n");
    return 1;
  }
  const auto argument = [&](int index, int64_t otherwise) { return argc > index ? std::atoll(argv[index]) : otherwise; };
  const int64_t n_tokens = argument(2, 1024), n_repeats = argument(3, 15), capture_mib = argument(4, 64), stride = argument(5, engine::kReadingStride);
  auto engine = engine::Engine::open({.model_path = argv[1], .n_ctx = n_tokens + 64});
  if (!engine.ok()) {
    fmt::print(stderr, "error: {}\n", engine.error().message);
    return 1;
  }
  const std::vector<int32_t> ids = bench::random_ids(n_tokens, (*engine)->model().info().n_vocab);
  std::vector<double> plain, captured, ratios;
  int64_t n_kept = 0;
  for (int64_t repeat = 0; repeat <= n_repeats; ++repeat) {
    const double a = prefill_seconds(**engine, ids, nullptr);
    engine::QueryCapture capture((*engine)->model(), (*engine)->kv_layout(), capture_mib << 20, stride);
    const double b = prefill_seconds(**engine, ids, &capture);
    n_kept = capture.n_tokens();
    if (repeat == 0) continue;  // warms up
    plain.push_back(a);
    captured.push_back(b);
    ratios.push_back(b / a);
  }
  fmt::print("{{\"tokens\": {}, \"captured_tokens\": {}, \"repeats\": {}, \"plain_ms\": {:.3f}, \"captured_ms\": {:.3f}, \"median_ratio\": {:.4f}}}\n", n_tokens,
             n_kept, n_repeats, median(plain) * 1e3, median(captured) * 1e3, median(ratios));
  return 0;
}
