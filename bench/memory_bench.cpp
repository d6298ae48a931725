// SPDX-License-Identifier: MIT
// Resident memory before a cache is filled, with it, after a compaction in place and after the cache is freed.
//   memory_bench MODEL.gguf TOKENS METHODS RATIO [TABLE=json]
// METHODS is a list; every one runs in a process of its own, so that none sees the other's memory. Prints one JSON
// object a method, or with TABLE=markdown a table. Bytes that a compaction takes beyond the cache are the highest
// resident memory while it ran, less that before it. Scratch memory that the process keeps after it for the next
// one (kept_scratch_bytes) counts against what was returned; what the compacted cache itself holds is
// cache_resident_after.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/machine.h"
#include "engine/compact_sequence.h"
#include "engine/engine.h"
#include "program.h"

namespace {

using namespace sh;
using namespace sh::bench;

Json measure(const std::string& model_path, int64_t n_tokens, const std::string& method, double ratio) {
  const engine::CompactionRequest request = request_of(method, ratio);
  const auto opened = need(engine::Engine::open({.model_path = model_path, .n_ctx = 2 * n_tokens + 1024}));
  engine::Engine& engine = *opened;
  const std::vector<int32_t> ids = random_ids(n_tokens, engine.model().info().n_vocab);
  // Weights are mapped, and scratch memory grows to what a forward needs: both are there from the first forward on
  // and belong to none of the differences below.
  {
    kv::SequenceCache warm_up(engine.block_pool());
    need(engine.prefill(warm_up, std::span(ids).first(std::min<size_t>(ids.size(), 512))));
  }
  const int64_t before = resident_bytes();
  kv::SequenceCache sequence(engine.block_pool());
  need(engine.prefill(sequence, ids));
  const int64_t filled = resident_bytes();
  const int64_t cache_bytes = sequence.usage().bytes;
  reset_peak_resident_bytes();
  const Stopwatch watch;
  const engine::CompactionReport report =
      need(engine::compact_sequence(engine.executor(), sequence, ids, nullptr, request));
  const double seconds = watch.seconds();
  const int64_t peak = peak_resident_bytes();
  const int64_t compacted = resident_bytes();
  const int64_t bytes_after = sequence.usage().bytes;
  sequence.clear();
  const int64_t freed = resident_bytes();
  const double expected = static_cast<double>(cache_bytes) * (1 - 1 / ratio);
  return {{"bench", "memory"},
          {"model", engine.alias()},
          {"tokens", n_tokens},
          {"method", method},
          {"ratio", ratio},
          {"real_ratio", report.real_ratio},
          {"rss_before", before},
          {"rss_filled", filled},
          {"rss_compacted", compacted},
          {"rss_freed", freed},
          {"cache_bytes", cache_bytes},
          {"cache_bytes_after", bytes_after},
          {"returned_bytes", filled - compacted},
          {"expected_bytes", expected},
          {"returned_share", static_cast<double>(filled - compacted) / expected},
          {"cache_resident_after", compacted - freed},
          {"kept_scratch_bytes", freed - before},
          {"peak_extra_bytes", peak - filled},
          {"peak_extra_share", static_cast<double>(peak - filled) / static_cast<double>(cache_bytes)},
          {"seconds", seconds}};
}

/// In a process of its own; what it printed, or an empty text after an error that it has told.
std::string measure_apart(const std::string& model_path, int64_t n_tokens, const std::string& method,
                          double ratio) {
  int ends[2];
  if (pipe(ends) != 0) fail("no pipe to a process could be opened");
  const pid_t child = fork();
  if (child < 0) fail("no process could be started");
  if (child == 0) {
    close(ends[0]);
    const std::string text = dump_json(measure(model_path, n_tokens, method, ratio));
    const bool is_written = write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    _exit(is_written ? 0 : 1);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? text : "";
}

void print_table(const std::vector<Json>& rows) {
  fmt::print(
      "| method | cache, MiB | after | RSS before, MiB | filled | compacted | freed | cache after, resident | "
      "scratch "
      "kept | returned of expected | peak beyond the cache, MiB | of the cache | seconds |\n"
      "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
  for (const Json& row : rows) {
    const auto mib = [&](const char* key) { return row.at(key).get<double>() / 1048576; };
    fmt::print(
        "| {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} % | "
        "{:.1f} | {:.2f} | {:.2f} |\n",
        row.at("method").get<std::string>(), mib("cache_bytes"), mib("cache_bytes_after"), mib("rss_before"),
        mib("rss_filled"), mib("rss_compacted"), mib("rss_freed"), mib("cache_resident_after"),
        mib("kept_scratch_bytes"), 100 * row.at("returned_share").get<double>(), mib("peak_extra_bytes"),
        row.at("peak_extra_share").get<double>(), row.at("seconds").get<double>());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    fmt::print(stderr, "usage: memory_bench MODEL.gguf TOKENS METHOD[,METHOD...] RATIO [json|markdown]\n");
    return 1;
  }
  const auto n_tokens = number_argument<int64_t>("TOKENS", argv[2], 64);
  const auto ratio = number_argument<double>("RATIO", argv[4], 1.01);
  const std::string format = argc > 5 ? argv[5] : "json";
  if (format != "json" && format != "markdown")
    fail(fmt::format("TABLE: expected json or markdown, got '{}'", format));
  std::vector<Json> rows;
  bool all_measured = true;
  for (const std::string& method : split(argv[3], ',')) {
    const std::string text = measure_apart(argv[1], n_tokens, method, ratio);
    if (text.empty()) {
      all_measured = false;
      continue;
    }
    rows.push_back(need(parse_json(text)));
    if (format == "json") fmt::print("{}\n", text);
    std::fflush(stdout);
  }
  if (format == "markdown") print_table(rows);
  return all_measured ? 0 : 1;
}
