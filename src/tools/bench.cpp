// SPDX-License-Identifier: MIT
#include "tools/bench.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/conversation.h"
#include "engine/cost.h"
#include "tools/bandwidth.h"
#include "tools/eval_methods.h"

namespace sh::tools {

namespace {

template <typename T>
std::vector<T> or_default(const std::vector<T>& given, T otherwise) {
  return given.empty() ? std::vector<T>{otherwise} : given;
}

std::vector<BenchTest> list_tests(const engine::BenchParams& p) {
  std::vector<BenchTest> tests;
  for (const int64_t depth : or_default<int64_t>(p.n_depth, 0)) {
    for (const int64_t n : or_default<int64_t>(p.n_prompt, 512))
      if (n > 0) tests.push_back({n, 0, depth});
    for (const int64_t n : or_default<int64_t>(p.n_gen, 128))
      for (const int64_t n_parallel : or_default<int64_t>(p.n_parallel, 1))
        if (n > 0) tests.push_back({0, n, depth, n_parallel});
    for (const auto& [n_prompt, n_gen] : p.prompt_gen)
      if (n_prompt + n_gen > 0) tests.push_back({n_prompt, n_gen, depth});
  }
  return tests;
}

std::vector<BenchSetup> list_setups(const engine::BenchParams& p) {
  std::vector<BenchSetup> setups;
  for (const std::string& model : p.model_paths)
    for (const int64_t n_threads : or_default<int64_t>(p.n_threads, hardware_threads()))
      for (const int64_t n_batch : or_default<int64_t>(p.n_batch, 2048))
        for (const int64_t n_ubatch : or_default<int64_t>(p.n_ubatch, 512))
          for (const DType type_k : or_default(p.types_k, DType::f16))
            for (const DType type_v : or_default(p.types_v, DType::f16))
              setups.push_back({model, n_batch, n_ubatch, n_threads, type_k, type_v});
  return setups;
}

std::string utc_now() {
  std::tm parts{};
  const std::time_t now = std::time(nullptr);
  gmtime_r(&now, &parts);
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", parts);
}

std::vector<int32_t> random_tokens(Rng& rng, int64_t n, int32_t n_vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i)
    ids.push_back(static_cast<int32_t>(rng.next_below(static_cast<uint64_t>(n_vocab))));
  return ids;
}

/// What is in the caches before a test starts, one for each conversation.
struct Depth {
  int64_t n_depth = 0;
  std::vector<kv::SequenceCache> full, compacted;
  engine::CompactionReport report;  // of the first compacted one
};

/// Fills one cache more.
Result<void> add_cache(engine::Engine& engine, const BenchOptions& options, Depth& depth) {
  const int64_t n_depth = depth.n_depth;
  const bool compacts = n_depth > 0 && !options.compact_method.empty();
  engine::Conversation conversation(engine, compacts);
  Rng rng(1 + depth.full.size(), 1);
  const std::vector<int32_t> ids = random_tokens(rng, n_depth, engine.model().info().n_vocab);
  const int64_t n_ubatch = engine.options().n_ubatch;
  for (int64_t at = 0; at < n_depth; at += n_ubatch) {
    const int64_t n = std::min(n_ubatch, n_depth - at);
    if (options.on_progress) options.on_progress(fmt::format("filling the cache: {} of {} tokens", at, n_depth));
    SH_RETURN_IF_ERROR(
        conversation.append(std::span(ids).subspan(static_cast<size_t>(at), static_cast<size_t>(n)), {}));
  }
  depth.full.push_back(conversation.cache().fork());
  if (!compacts) return {};
  if (options.on_progress) options.on_progress(fmt::format("compacting {} tokens", n_depth));
  auto report = conversation.compact(options.compaction);
  if (!report.ok())
    return Error{report.error().kind,
                 fmt::format("--compact-method {} --compact-ratio {} of -d {}: {}", options.compact_method,
                             options.compaction.ratio, n_depth, report.error().message)};
  if (depth.compacted.empty()) depth.report = std::move(*report);
  depth.compacted.push_back(conversation.cache().fork());
  return {};
}

struct Timed {
  double seconds = 0;
  double bytes_per_token = 0;  // mean over the generated ones
  int64_t kv_bytes = 0;        // when it ends
};

/// One run over copies of the caches: only the copies of their last blocks are extra work, before the clock starts.
Result<Timed> time_once(engine::Engine& engine, std::span<const kv::SequenceCache> start, const BenchTest& test,
                        int64_t weight_bytes) {
  std::vector<kv::SequenceCache> caches;
  for (int64_t i = 0; i < test.n_parallel; ++i) caches.push_back(start[static_cast<size_t>(i)].fork());
  Rng rng(2, 1);
  const int32_t n_vocab = engine.model().info().n_vocab;
  const std::vector<int32_t> prompt = random_tokens(rng, test.n_prompt, n_vocab),
                             answer = random_tokens(rng, test.n_gen * test.n_parallel, n_vocab);
  Mat<float> logits(test.n_parallel, n_vocab);
  Timed timed;
  const Stopwatch watch;
  if (!prompt.empty())
    for (kv::SequenceCache& cache : caches) SH_RETURN_IF_ERROR(engine.prefill(cache, prompt));
  for (auto next = answer.begin(); next != answer.end();) {
    engine::TokenBatch& batch = engine.executor().new_batch();
    for (kv::SequenceCache& cache : caches) batch.add(cache, std::span(&*next++, 1), true);
    SH_RETURN_IF_ERROR(engine.executor().forward(batch.view(), logits.view()));
    timed.bytes_per_token += static_cast<double>(weight_bytes);
    for (const kv::SequenceCache& cache : caches)
      timed.bytes_per_token += static_cast<double>(engine::kv_bytes_read(cache));
  }
  timed.seconds = watch.seconds();
  for (const kv::SequenceCache& cache : caches) timed.kv_bytes += cache.usage().bytes;
  timed.bytes_per_token /= static_cast<double>(std::max<int64_t>(1, test.n_gen * test.n_parallel));
  return timed;
}

Result<void> run_test(engine::Engine& engine, const BenchOptions& options, const Depth& depth,
                      BenchResult& result) {
  const BenchTest& test = result.test;
  const engine::WeightCost weights = engine::weight_cost(engine.file());
  if (test.n_gen == 0)
    result.operations = engine::prefill_operations(engine.model(), weights, test.n_prompt, test.n_depth);
  if (!depth.compacted.empty())
    result.compacted = CompactedResult{.real_ratio = depth.report.real_ratio,
                                       .seconds = depth.report.total_seconds,
                                       .rows_before = depth.report.rows_before,
                                       .rows_after = depth.report.rows_after};
  for (int64_t run = options.warms_up ? -1 : 0; run < options.n_repeats; ++run) {
    if (options.on_progress)
      options.on_progress(
          fmt::format("{} {}: run {} of {}", result.model_type, test.name(), run + 1, options.n_repeats));
    SH_ASSIGN(const Timed full, time_once(engine, depth.full, test, weights.bytes));
    if (run >= 0) result.samples.seconds.push_back(full.seconds);
    result.kv_bytes = full.kv_bytes;
    if (test.n_prompt == 0) {
      result.bytes_per_token = full.bytes_per_token;
      result.is_in_cache = fits_last_level_cache(full.bytes_per_token * static_cast<double>(test.n_parallel));
    }
    if (depth.compacted.empty()) continue;
    SH_ASSIGN(const Timed compacted, time_once(engine, depth.compacted, test, weights.bytes));
    if (run >= 0) result.compacted->samples.seconds.push_back(compacted.seconds);
    result.compacted->kv_bytes = compacted.kv_bytes;
    if (test.n_prompt == 0) result.compacted->bytes_per_token = compacted.bytes_per_token;
  }
  return {};
}

engine::EngineOptions engine_options(const BenchSetup& setup, const BenchOptions& options) {
  engine::EngineOptions e;
  e.model_path = setup.model_path;
  e.n_batch = static_cast<int32_t>(setup.n_batch);
  e.n_ubatch = static_cast<int32_t>(std::min(setup.n_ubatch, setup.n_batch));
  e.n_threads = static_cast<int32_t>(setup.n_threads);
  e.type_k = setup.type_k;
  e.type_v = setup.type_v;
  e.kernels = options.kernels;
  e.repacks = options.repacks;
  e.n_ctx = 0;
  for (const BenchTest& test : options.tests)  // the caches, compacted copies of them, and what a test adds
    e.n_ctx = std::max(e.n_ctx, test.n_parallel * (2 * (test.n_depth + test.n_prompt + test.n_gen) + 64));
  return e;
}

}  // namespace

std::string BenchTest::name() const {
  std::string name;
  if (n_prompt > 0) name += fmt::format("pp{}", n_prompt);
  if (n_gen > 0) name += fmt::format("{}tg{}", n_prompt > 0 ? "+" : "", n_gen);
  if (n_depth > 0) name += fmt::format(" @ d{}", n_depth);
  if (n_parallel > 1) name += fmt::format(" x{}", n_parallel);
  return name;
}

namespace {
double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}
double deviation_of(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  const double mean = mean_of(values);
  double sum = 0;
  for (const double v : values) sum += (v - mean) * (v - mean);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}
std::vector<double> rates_of(const std::vector<double>& seconds, int64_t n_tokens) {
  std::vector<double> rates;
  for (const double s : seconds) rates.push_back(static_cast<double>(n_tokens) / s);
  return rates;
}
}  // namespace

double Samples::mean_seconds() const {
  return mean_of(seconds);
}
double Samples::deviation_seconds() const {
  return deviation_of(seconds);
}
double Samples::mean_rate(int64_t n_tokens) const {
  return mean_of(rates_of(seconds, n_tokens));
}
double Samples::deviation_rate(int64_t n_tokens) const {
  return deviation_of(rates_of(seconds, n_tokens));
}

Result<BenchOptions> bench_options(const engine::ProgramParams& params) {
  BenchOptions options{.setups = list_setups(params.bench),
                       .tests = list_tests(params.bench),
                       .n_repeats = params.bench.n_repeats,
                       .warms_up = params.bench.warms_up,
                       .measures_machine = params.bench.measures_machine,
                       .repacks = params.engine.repacks,
                       .delay_seconds = params.bench.delay_seconds,
                       .kernels = params.engine.kernels,
                       .compact_method = params.bench.compact_method};
  if (options.setups.empty())
    return Error{ErrorKind::invalid_argument, "no model given: name GGUF files with -m FILE"};
  if (options.tests.empty())
    return Error{ErrorKind::invalid_argument, "nothing to run: -p and -n are 0 and there is no -pg"};
  if (options.compact_method.empty()) return options;
  SH_ASSIGN(options.compaction, parse_compaction("--compact-method", options.compact_method));
  if (options.compaction.budget == compaction::BudgetPolicy::profile)
    return Error{ErrorKind::invalid_argument,
                 "--compact-method: bench reads no head profile for budget=profile; name another budget"};
  options.compaction.ratio = params.bench.compact_ratio;
  options.compaction.of_whole_cache = true;
  if (std::none_of(options.tests.begin(), options.tests.end(),
                   [](const BenchTest& test) { return test.n_depth > 0; }))
    return Error{
        ErrorKind::invalid_argument,
        "--compact-method: there is nothing to compact without a depth; give one with -d, for example -d 4096"};
  return options;
}

namespace {
/// What is wrong with the last file is known before the first is measured.
Result<void> check_models(const BenchOptions& options) {
  std::set<std::string> seen;
  for (const BenchSetup& setup : options.setups)
    if (seen.insert(setup.model_path).second) SH_RETURN_IF_ERROR(gguf::File::open(setup.model_path));
  return {};
}
}  // namespace

Result<void> run_bench(const BenchOptions& options, const std::function<void(const BenchResult&)>& on_result) {
  SH_RETURN_IF_ERROR(check_models(options));
  struct Machine {
    double bandwidth = 0;
    ArithmeticPeaks peaks;
  };
  std::map<int, Machine> machines;  // by number of threads
  bool is_first = true;
  for (const BenchSetup& setup : options.setups) {
    SH_ASSIGN(const auto engine, engine::Engine::open(engine_options(setup, options)));
    const int n_threads = engine->thread_pool().n_threads();
    if (options.measures_machine && machines.count(n_threads) == 0) {
      if (options.on_progress) options.on_progress("measuring the machine");
      machines[n_threads] = {measure_read_bandwidth(engine->thread_pool()),
                             measure_arithmetic(engine->thread_pool(), engine->kernels().name)};
    }
    const Machine& machine = machines[n_threads];
    const models::ModelInfo& info = engine->model().info();
    Depth depth;
    for (const BenchTest& test : options.tests) {
      if (depth.n_depth != test.n_depth) depth = {.n_depth = test.n_depth};
      if (!std::exchange(is_first, false) && options.delay_seconds > 0) {
        if (options.on_progress) options.on_progress(fmt::format("waiting {} s", options.delay_seconds));
        std::this_thread::sleep_for(std::chrono::seconds(options.delay_seconds));
      }
      while (std::ssize(depth.full) < test.n_parallel) SH_RETURN_IF_ERROR(add_cache(*engine, options, depth));
      BenchResult result{.setup = setup,
                         .test = test,
                         .model_type = info.arch + " " + info.file_type,
                         .model_bytes = info.weight_bytes,
                         .model_params = info.n_params,
                         .kernels = engine->kernels().name,
                         .time = utc_now(),
                         .memory_bandwidth = machine.bandwidth,
                         .peaks = machine.peaks};
      SH_RETURN_IF_ERROR(run_test(*engine, options, depth, result));
      on_result(result);
    }
  }
  return {};
}

}  // namespace sh::tools
