// SPDX-License-Identifier: MIT
// What a compaction costs beside the prefill of the same tokens: seconds as a share, and memory beyond the cache.
//   share_bench MODEL.gguf METHOD[,METHOD...] N_TOKENS[,N_TOKENS...] [RATIO=8] [REPEATS=3]
// A method may carry options: "solver:reread=0.1". Prints one JSON object a line. Seconds are those of the clock;
// "cpu" are seconds of all cores, by stage, for machines that others use too.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/machine.h"
#include "base/rng.h"
#include "engine/compact_sequence.h"
#include "engine/engine.h"
#include "program.h"

namespace {

using namespace sh;
using namespace sh::bench;

engine::CompactionRequest request_of(const std::string& spec, double ratio) {
  const std::vector<std::string> parts = split(spec, ':');
  engine::CompactionRequest request;
  request.method = parts[0];
  request.ratio = ratio;
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    const auto set = engine::set_option(request, parts[i].substr(0, equals), parts[i].substr(equals + 1));
    if (!set.ok()) fail(set.error().message);
  }
  return request;
}

double cpu_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

// Processor time between two reports of progress belongs to the later one's stage: it tells what is done. A check
// is told of when it begins.
class StageClock {
 public:
  void report(std::string stage, double fraction) {
    if (stage == "solve") stage = fraction <= 0.3 + 1e-9 ? "score" : fraction <= 0.5 + 1e-9 ? "select" : "fit";
    const double now = cpu_seconds();
    seconds_[last_stage_ == "check" ? last_stage_ : stage] += now - last_;
    last_ = now;
    last_stage_ = stage;
  }
  std::string json(int n_repeats) const {
    std::string text;
    for (const auto& [stage, seconds] : seconds_)
      text += fmt::format("{}\"{}\": {:.4f}", text.empty() ? "" : ", ", stage, seconds / n_repeats);
    return text;
  }
  void skip() {
    last_ = cpu_seconds();
    last_stage_.clear();
  }

 private:
  std::string last_stage_;
  std::map<std::string, double> seconds_;
  double last_ = cpu_seconds();
};

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
    Rng rng(1);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < n_tokens; ++i)
      ids.push_back(static_cast<int32_t>(rng.next_below(static_cast<uint64_t>(engine.model().info().n_vocab))));
    kv::SequenceCache sequence(engine.block_pool());
    const double prefill_cpu_begin = cpu_seconds();
    const Stopwatch prefill_watch;
    if (const auto read = engine.prefill(sequence, ids); !read.ok()) fail(read.error().message);
    const double prefill_seconds = prefill_watch.seconds(), prefill_cpu = cpu_seconds() - prefill_cpu_begin;
    for (const std::string& spec : split(argv[2], ',')) {
      const engine::CompactionRequest request = request_of(spec, ratio);
      std::vector<double> seconds, capture, select, fit, check;
      double real_ratio = 0, peak_bytes = 0, cpu = 0;
      StageClock stages;
      for (int repeat = 0; repeat < n_repeats; ++repeat) {
        kv::SequenceCache fork = sequence.fork();
        const double rss = static_cast<double>(resident_bytes());
        reset_peak_resident_bytes();
        stages.skip();
        const double cpu_begin = cpu_seconds();
        const Stopwatch watch;
        const auto report =
            engine::compact_sequence(engine.executor(), fork, ids, nullptr, request, nullptr,
                                     [&](const char* stage, double fraction) { stages.report(stage, fraction); });
        if (!report.ok()) fail(report.error().message);
        seconds.push_back(watch.seconds());
        cpu += (cpu_seconds() - cpu_begin) / n_repeats;
        capture.push_back(report->capture_seconds);
        select.push_back(report->select_seconds);
        fit.push_back(report->fit_seconds);
        check.push_back(report->check.seconds);
        real_ratio = report->real_ratio;
        peak_bytes = std::max(peak_bytes, static_cast<double>(peak_resident_bytes()) - rss);
      }
      fmt::print(
          "{{\"tokens\": {}, \"method\": \"{}\", \"ratio\": {}, \"real_ratio\": {:.3f}, \"repeats\": {}, "
          "\"prefill_seconds\": {:.4f}, \"seconds\": {:.4f}, \"share\": {:.5f}, \"capture\": {:.4f}, \"select\": "
          "{:.4f}, \"fit\": {:.4f}, \"check\": {:.4f}, \"prefill_cpu\": {:.3f}, \"cpu_share\": {:.5f}, \"cpu\": "
          "{{{}}}, "
          "\"peak_extra_bytes\": {:.0f}, \"cache_bytes\": {}}}\n",
          n_tokens, spec, ratio, real_ratio, n_repeats, prefill_seconds, median(seconds),
          median(seconds) / prefill_seconds, median(capture), median(select), median(fit), median(check),
          prefill_cpu, cpu / prefill_cpu, stages.json(n_repeats), peak_bytes, sequence.usage().bytes);
      std::fflush(stdout);
    }
  }
  return 0;
}
