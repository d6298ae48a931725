// SPDX-License-Identifier: MIT
// Decoding from the uncompacted and from the compacted cache of one conversation, in turn, in one process.
//   decode_bench MODEL.gguf CONTEXTS RATIOS [METHODS=streaming] [REPEATS=9] [FILL=prefill] [THREADS=0] [TOKENS=16]
// CONTEXTS, RATIOS and METHODS are lists (512,2048); a method may carry options ("self_study:conversations=48").
// FILL=rows writes random keys and values instead of reading tokens: a decoded token costs the same, a long cache
// is there in seconds, and the methods are those that need no queries. Method "ragged" is `random` with a budget
// per head that falls from 8 to 1/8 of the first (a geometric row over all heads, in an order that mixes layers),
// the shape that a budget over all heads gives. Prints one JSON object a context, method and ratio: medians over
// the repeats, of wall clock and of the process' CPU seconds (with THREADS=1 the latter hardly notices what else
// runs).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/machine.h"
#include "engine/compact_sequence.h"
#include "engine/cost.h"
#include "engine/engine.h"
#include "engine/region_plan.h"
#include "program.h"

namespace {

using namespace sh;
using namespace sh::bench;

constexpr int64_t kWarmUpTokens = 1;  // after a fork, whose first token copies every head's tail block
constexpr int64_t kPiece = 1024;      // rows written at a time
constexpr int kResamples = 10'000;

double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Random rows in all heads, as prefill would leave them.
void write_rows(engine::Engine& engine, kv::SequenceCache& sequence, int64_t n_tokens) {
  const kv::KvLayout& layout = engine.kv_layout();
  int64_t widest = 0;
  for (const kv::LayerLayout& layer : layout.layers)
    widest = std::max<int64_t>(widest, int64_t{layer.n_heads} * std::max(layer.key_width, layer.value_width));
  Rng rng(1);
  std::vector<float> numbers(static_cast<size_t>(kPiece * widest));
  for (float& x : numbers) x = static_cast<float>(rng.next_normal());
  for (int64_t at = 0; at < n_tokens; at += kPiece) {
    const int64_t n = std::min(kPiece, n_tokens - at);
    need(sequence.reserve(n));
    for (size_t l = 0; l < layout.layers.size(); ++l) {
      const kv::LayerLayout& layer = layout.layers[l];
      if (layer.n_heads == 0) continue;
      const auto rows = [&](int32_t width) {
        return MatView<const float>{numbers.data(), n, int64_t{layer.n_heads} * width};
      };
      sequence.append(engine.kernels(), static_cast<int32_t>(l), 0, rows(layer.key_width),
                      rows(layer.value_width));
    }
    sequence.commit(n);
  }
}

engine::CompactionRequest decode_request(const engine::Engine& engine, const std::string& method, double ratio) {
  if (method != "ragged") return request_of(method, ratio);
  engine::CompactionRequest request = request_of("random:budget=profile", ratio);
  compaction::HeadProfile profile{.model = engine::profile_key(engine), .method = "ragged"};
  const int64_t n_heads = engine.kv_layout().n_heads_total();
  double sum = 0;
  int64_t i = 0;
  // Steps of 7 heads through the row: neighbours differ, and so do the layers' longest heads.
  const auto share = [&](int64_t head) {
    return std::exp2(3.0 - 6.0 * static_cast<double>(head * 7 % n_heads) / static_cast<double>(n_heads));
  };
  for (int64_t head = 0; head < n_heads; ++head) sum += share(head);
  for (const kv::LayerLayout& layer : engine.kv_layout().layers) {
    profile.shares.emplace_back();
    for (int32_t head = 0; head < layer.n_heads; ++head)
      profile.shares.back().push_back(static_cast<float>(share(i++) / sum));
  }
  request.profile = profile;
  return request;
}

struct Cost {
  double wall = 0, cpu = 0;  // seconds a token
};
/// Decodes tokens behind the cache, which stays as it is.
Cost decode(engine::Engine& engine, const kv::SequenceCache& cache, int64_t n_tokens) {
  kv::SequenceCache fork = cache.fork();
  int32_t id = 5;
  const auto step = [&] {
    const Mat<float> logits = need(engine.prefill(fork, std::span(&id, 1)));
    id = static_cast<int32_t>(std::max_element(logits.data.begin(), logits.data.end()) - logits.data.begin());
  };
  for (int64_t i = 0; i < kWarmUpTokens; ++i) step();
  const Stopwatch watch;
  const double cpu = cpu_seconds();
  for (int64_t i = 0; i < n_tokens; ++i) step();
  const auto n = static_cast<double>(n_tokens);
  return {watch.seconds() / n, (cpu_seconds() - cpu) / n};
}

/// Median of the ratios with its 95 % interval by resampling them.
Json with_interval(const std::vector<double>& ratios) {
  Rng rng(7);
  std::vector<double> medians;
  for (int i = 0; i < kResamples; ++i) {
    std::vector<double> drawn;
    for (size_t j = 0; j < ratios.size(); ++j) drawn.push_back(ratios[rng.next_below(ratios.size())]);
    medians.push_back(median(std::move(drawn)));
  }
  std::sort(medians.begin(), medians.end());
  const auto at = [&](double q) { return medians[static_cast<size_t>(q * (kResamples - 1))]; };
  return {{"median", median(ratios)}, {"ci", {at(0.025), at(0.975)}}};
}

/// Seconds a token of each decode, in the order of the repeats.
struct Series {
  std::vector<double> full, compacted, none;
};

/// The speed-up of each repeat, against the mean of the full decodes before and after it.
std::vector<double> speedups(const Series& series) {
  std::vector<double> ratios;
  for (size_t i = 0; i < series.compacted.size(); ++i)
    ratios.push_back((series.full[i] + series.full[i + 1]) / 2 / series.compacted[i]);
  return ratios;
}

Json summary(const Series& series, double predicted, double saved_bytes_share) {
  const double full = median(series.full), compacted = median(series.compacted), none = median(series.none);
  const Json speedup = with_interval(speedups(series));
  Json out{{"seconds_before", full},
           {"seconds_after", compacted},
           {"seconds_without_rows", none},
           {"speedup", speedup}};
  // Below a hundredth there is no gain to take a share of.
  out["share_of_predicted"] =
      predicted > 1.01 ? Json((speedup["median"].get<double>() - 1) / (predicted - 1)) : Json(nullptr);
  out["attention_saved_share"] =
      full > none ? Json((full - compacted) / (full - none) / saved_bytes_share) : Json(nullptr);
  return out;
}

/// Full, compacted, (nearly) empty, full, compacted, ...
Json compare(engine::Engine& engine, const kv::SequenceCache& full, const kv::SequenceCache& compacted,
             int64_t n_repeats, int64_t n_tokens) {
  const kv::SequenceCache none(engine.block_pool());
  Series wall, cpu;
  const auto add = [&](const kv::SequenceCache& cache, std::vector<double> Series::*field) {
    const Cost cost = decode(engine, cache, n_tokens);
    (wall.*field).push_back(cost.wall);
    (cpu.*field).push_back(cost.cpu);
  };
  add(full, &Series::full);
  for (int64_t repeat = 0; repeat < n_repeats; ++repeat) {
    add(compacted, &Series::compacted);
    add(none, &Series::none);
    add(full, &Series::full);
  }
  // As the token in the middle of those that are decoded reads them.
  const int64_t n_behind = kWarmUpTokens + (n_tokens + 1) / 2;
  const auto grown = static_cast<double>(n_behind * engine.kv_layout().bytes_per_token());
  const auto weights = static_cast<double>(engine::weight_cost(engine.file()).bytes);
  const double kv_before = static_cast<double>(engine::kv_bytes_read(full)) + grown;
  const double kv_after = static_cast<double>(engine::kv_bytes_read(compacted)) + grown;
  const double predicted = (weights + kv_before) / (weights + kv_after);
  const double saved_share = (kv_before - kv_after) / (kv_before - grown);
  return {{"weight_bytes", weights},
          {"kv_bytes_before", kv_before},
          {"kv_bytes_after", kv_after},
          {"predicted", predicted},
          {"wall", summary(wall, predicted, saved_share)},
          {"cpu", summary(cpu, predicted, saved_share)}};
}

std::vector<int64_t> rows_of_heads(const kv::SequenceCache& cache) {
  std::vector<int64_t> rows;
  const auto& layers = cache.pool().layout().layers;
  for (size_t l = 0; l < layers.size(); ++l)
    for (int32_t h = 0; h < layers[l].n_heads; ++h) rows.push_back(cache.head(static_cast<int32_t>(l), h).n_rows);
  return rows;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    fmt::print(stderr,
               "usage: decode_bench MODEL.gguf CONTEXTS RATIOS [METHODS] [REPEATS] [FILL] [THREADS] [TOKENS]\n"
               "  CONTEXTS, RATIOS, METHODS: lists such as 512,2048; METHODS also \"ragged\"; FILL: prefill or "
               "rows\n");
    return 1;
  }
  const auto argument = [&](int index, const char* otherwise) { return argc > index ? argv[index] : otherwise; };
  const auto contexts = number_list<int64_t>("CONTEXTS", argv[2], 16);
  const auto ratios = number_list<double>("RATIOS", argv[3], 1.0);
  const std::vector<std::string> methods = split(argument(4, "streaming"), ',');
  const auto n_repeats = number_argument<int64_t>("REPEATS", argument(5, "9"), 1);
  const std::string fill = argument(6, "prefill");
  if (fill != "prefill" && fill != "rows") fail(fmt::format("FILL: expected prefill or rows, got '{}'", fill));
  const auto n_threads = number_argument<int32_t>("THREADS", argument(7, "0"), 0);
  const auto n_tokens = number_argument<int64_t>("TOKENS", argument(8, "16"), 1);

  // The cache, its compacted copy, and what a study or a repetition reads behind it.
  const int64_t n_longest = *std::max_element(contexts.begin(), contexts.end());
  const auto opened = need(engine::Engine::open(
      {.model_path = argv[1], .n_ctx = 3 * n_longest + 4 * n_tokens + 1024, .n_threads = n_threads}));
  engine::Engine& engine = *opened;
  for (const std::string& method : methods) decode_request(engine, method, ratios.front());  // errors come early
  for (const int64_t n_context : contexts) {
    const std::vector<int32_t> ids = random_ids(n_context, engine.model().info().n_vocab);
    kv::SequenceCache full(engine.block_pool());
    if (fill == "rows")
      write_rows(engine, full, n_context);
    else
      need(engine.prefill(full, ids));
    for (const std::string& method : methods)
      for (const double ratio : ratios) {
        kv::SequenceCache compacted = full.fork();
        const auto report = engine::compact_sequence(engine.executor(), compacted, ids, nullptr,
                                                     decode_request(engine, method, ratio));
        if (!report.ok()) {  // a ratio that so short a cache cannot reach, say: the others are still measured
          fmt::print(stderr, "{} at {} tokens and {}x: {}\n", method, n_context, ratio, report.error().message);
          continue;
        }
        const std::vector<int64_t> rows = rows_of_heads(compacted);
        Json line{{"bench", "decode"},
                  {"model", engine.alias()},
                  {"machine", machine_name()},
                  {"kernels", engine.kernels().name},
                  {"threads", engine.thread_pool().n_threads()},
                  {"context", n_context},
                  {"fill", fill},
                  {"method", method},
                  {"ratio", ratio},
                  {"real_ratio", report->real_ratio},
                  {"rows_lowest", *std::min_element(rows.begin(), rows.end())},
                  {"rows_highest", *std::max_element(rows.begin(), rows.end())},
                  {"repeats", n_repeats},
                  {"tokens", n_tokens}};
        line.update(compare(engine, full, compacted, n_repeats, n_tokens));
        fmt::print("{}\n", dump_json(line));
        std::fflush(stdout);
      }
  }
  return 0;
}
