// SPDX-License-Identifier: MIT
// What a compaction costs beside the prefill of the same tokens: seconds as a share, and memory beyond the cache.
// `cpu_share` is the share of the processor's seconds, which other programs disturb less. What the first validated
// compaction spends on the model's verdict scale is given apart, as `scale`, and no part of the others.
//   share_bench MODEL.gguf METHOD[,METHOD...] N_TOKENS[,N_TOKENS...] [RATIO=8] [REPEATS=3]
// A method may carry options: "solver:reread=0.1". Prints one JSON object a line.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/machine.h"
#include "engine/compact_sequence.h"
#include "engine/engine.h"
#include "program.h"

using namespace sh;
using namespace sh::bench;

namespace {

double cpu_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    fmt::print(stderr, "usage: share_bench MODEL.gguf METHOD[,METHOD...] N_TOKENS[,N_TOKENS...] [RATIO] [REPEATS]\n");
    return 1;
  }
  const double ratio = argc > 4 ? std::atof(argv[4]) : 8;
  const int n_repeats = argc > 5 ? std::atoi(argv[5]) : 3;
  int64_t n_longest = 0;
  for (const std::string& n : split(argv[3], ',')) n_longest = std::max<int64_t>(n_longest, std::atoll(n.c_str()));
  auto opened = engine::Engine::open({.model_path = argv[1], .n_ctx = 2 * n_longest});
  if (!opened.ok()) fail(opened.error().message);
  engine::Engine& engine = **opened;
  for (const std::string& n_text : split(argv[3], ',')) {
    const int64_t n_tokens = std::atoll(n_text.c_str());
    const std::vector<int32_t> ids = random_ids(n_tokens, engine.model().info().n_vocab);
    kv::SequenceCache sequence(engine.block_pool());
    const Stopwatch prefill_watch;
    const double cpu_before = cpu_seconds();
    if (const auto read = engine.prefill(sequence, ids); !read.ok()) fail(read.error().message);
    const double prefill_seconds = prefill_watch.seconds(), prefill_cpu = cpu_seconds() - cpu_before;
    for (const std::string& spec : split(argv[2], ',')) {
      const engine::CompactionRequest request = request_of(spec, ratio);
      std::vector<double> seconds, cpu, capture, select, fit, check;
      double real_ratio = 0, peak_bytes = 0, scale_seconds = 0;
      int64_t n_fed = 0;
      for (int repeat = 0; repeat < n_repeats; ++repeat) {
        kv::SequenceCache fork = sequence.fork();
        const double rss = static_cast<double>(resident_bytes());
        reset_peak_resident_bytes();
        const double cpu_begin = cpu_seconds();
        const Stopwatch watch;
        const auto report = engine::compact_sequence(engine.executor(), fork, ids, nullptr, request);
        if (!report.ok()) fail(report.error().message);
        const double scale = report->check.scale_seconds;
        const double wall = watch.seconds();
        seconds.push_back(wall - scale);
        // While the scale is measured the compaction does nothing else.
        cpu.push_back((cpu_seconds() - cpu_begin) * (wall - scale) / wall);
        scale_seconds = std::max(scale_seconds, scale);
        capture.push_back(report->capture_seconds);
        select.push_back(report->select_seconds);
        fit.push_back(report->fit_seconds);
        check.push_back(report->check.seconds - scale);
        real_ratio = report->real_ratio;
        n_fed = report->study.n_tokens;
        peak_bytes = std::max(peak_bytes, static_cast<double>(peak_resident_bytes()) - rss);
      }
      fmt::print(
          "{{\"tokens\": {}, \"method\": \"{}\", \"ratio\": {}, \"real_ratio\": {:.3f}, \"repeats\": {}, "
          "\"prefill_seconds\": {:.4f}, \"seconds\": {:.4f}, \"share\": {:.5f}, \"cpu_share\": {:.5f}, "
          "\"capture\": {:.4f}, \"select\": {:.4f}, \"fit\": {:.4f}, \"check\": {:.4f}, \"scale\": {:.4f}, "
          "\"fed_tokens\": {}, "
          "\"peak_extra_bytes\": {:.0f}, \"cache_bytes\": {}}}\n",
          n_tokens, spec, ratio, real_ratio, n_repeats, prefill_seconds, median(seconds),
          median(seconds) / prefill_seconds, median(cpu) / prefill_cpu, median(capture), median(select),
          median(fit), median(check), scale_seconds, n_fed, peak_bytes, sequence.usage().bytes);
      std::fflush(stdout);
    }
  }
  return 0;
}
