// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>

#include "base/build_info.h"
#include "base/machine.h"
#include "tools/bench.h"
#include "tools/table.h"

namespace sh::tools {

namespace {

/// A parameter that has a column only when it varies or differs from its default.
struct Parameter {
  const char* name;
  const char* otherwise;
  std::string (*value)(const BenchSetup&);
};
const Parameter kParameters[] = {
    {"n_batch", "2048", [](const BenchSetup& s) { return fmt::format("{}", s.n_batch); }},
    {"n_ubatch", "512", [](const BenchSetup& s) { return fmt::format("{}", s.n_ubatch); }},
    {"type_k", "f16", [](const BenchSetup& s) { return std::string(tensor_format(s.type_k).name); }},
    {"type_v", "f16", [](const BenchSetup& s) { return std::string(tensor_format(s.type_v).name); }},
};

std::string size_label(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  return value >= double(1 << 30) ? fmt::format("{:.2f} GiB", value / (1 << 30))
                                  : fmt::format("{:.2f} MiB", value / (1 << 20));
}
std::string count_label(int64_t n) {
  const auto value = static_cast<double>(n);
  return value >= 1e9 ? fmt::format("{:.2f} B", value * 1e-9) : fmt::format("{:.2f} M", value * 1e-6);
}
std::string rate_label(const Samples& samples, int64_t n_tokens) {
  return fmt::format("{:.2f} ± {:.2f}", samples.mean_rate(n_tokens), samples.deviation_rate(n_tokens));
}

double generation_bandwidth(const Samples& samples, double bytes_per_token, const BenchTest& test) {
  return bytes_per_token * samples.mean_rate(test.n_tokens());
}

/// Of the memory's speed; 0 when that was not measured or is not what the test ran at.
double memory_share(const BenchResult& r) {
  if (r.memory_bandwidth <= 0 || r.is_in_cache) return 0;
  return generation_bandwidth(r.samples, r.bytes_per_token, r.test) / r.memory_bandwidth;
}

std::vector<int64_t> nanoseconds(const Samples& samples) {
  std::vector<int64_t> out;
  for (const double s : samples.seconds) out.push_back(static_cast<int64_t>(s * 1e9));
  return out;
}
std::vector<double> rates(const Samples& samples, int64_t n) {
  std::vector<double> out;
  for (const double s : samples.seconds) out.push_back(static_cast<double>(n) / s);
  return out;
}

void add_samples(Json& json, const Samples& samples, int64_t n) {
  json["avg_ns"] = static_cast<int64_t>(samples.mean_seconds() * 1e9);
  json["stddev_ns"] = static_cast<int64_t>(samples.deviation_seconds() * 1e9);
  json["avg_ts"] = samples.mean_rate(n);
  json["stddev_ts"] = samples.deviation_rate(n);
  json["samples_ns"] = nanoseconds(samples);
  json["samples_ts"] = rates(samples, n);
}

std::string quoted_csv(const Json& value) {
  std::string text = value.is_string() ? value.get<std::string>() : value.is_null() ? "" : dump_json(value);
  for (size_t at = 0; (at = text.find('"', at)) != std::string::npos; at += 2) text.insert(at, 1, '"');
  return '"' + text + '"';
}

}  // namespace

Json bench_json(const BenchOptions& options, const BenchResult& r) {
  const int64_t n = r.test.n_tokens();
  Json json = {{"build_commit", build_info().commit},
               {"build_number", build_info().build_number},
               {"cpu_info", cpu_name()},
               {"gpu_info", ""},
               {"backends", "CPU"},
               {"kernels", r.kernels},
               {"model_filename", r.setup.model_path},
               {"model_type", r.model_type},
               {"model_size", r.model_bytes},
               {"model_n_params", r.model_params},
               {"n_batch", r.setup.n_batch},
               {"n_ubatch", r.setup.n_ubatch},
               {"n_threads", r.setup.n_threads},
               {"type_k", tensor_format(r.setup.type_k).name},
               {"type_v", tensor_format(r.setup.type_v).name},
               {"n_gpu_layers", 0},
               {"flash_attn", true},
               {"n_prompt", r.test.n_prompt},
               {"n_gen", r.test.n_gen},
               {"n_depth", r.test.n_depth},
               {"n_parallel", r.test.n_parallel},
               {"test_time", r.time}};
  add_samples(json, r.samples, n);
  const double bandwidth = generation_bandwidth(r.samples, r.bytes_per_token, r.test);
  const auto if_known = [](double value) { return value > 0 ? Json(value) : Json(); };
  json["bytes_per_token"] = if_known(r.bytes_per_token);
  json["gb_per_s"] = if_known(bandwidth * 1e-9);
  json["memory_gb_per_s"] = if_known(r.memory_bandwidth * 1e-9);
  json["memory_share"] = if_known(memory_share(r));
  json["gflop_per_s"] = if_known(r.flops * 1e-9 / r.samples.mean_seconds());
  json["compaction"] = nullptr;
  if (r.compacted) {
    Json c = {{"method", options.compact_method},        {"ratio", options.compaction.ratio},
              {"real_ratio", r.compacted->real_ratio},   {"seconds", r.compacted->seconds},
              {"rows_before", r.compacted->rows_before}, {"rows_after", r.compacted->rows_after}};
    add_samples(c, r.compacted->samples, n);
    c["gb_per_s"] =
        if_known(generation_bandwidth(r.compacted->samples, r.compacted->bytes_per_token, r.test) * 1e-9);
    json["compaction"] = c;
  }
  return json;
}

std::string bench_csv_header(const Json& row) {
  std::string line;
  for (const auto& [key, value] : row.items()) line += (line.empty() ? "" : ",") + key;
  return line + "\n";
}

std::string bench_csv_row(const Json& row) {
  std::string line;
  for (const auto& [key, value] : row.items()) line += (line.empty() ? "" : ",") + quoted_csv(value);
  return line + "\n";
}

std::string bench_markdown(const BenchOptions& options, const std::vector<BenchResult>& results) {
  std::vector<const Parameter*> shown;
  for (const Parameter& parameter : kParameters)
    if (std::any_of(results.begin(), results.end(),
                    [&](const BenchResult& r) { return parameter.value(r.setup) != parameter.otherwise; }))
      shown.push_back(&parameter);
  const bool compacts = !options.compact_method.empty();
  std::vector<std::string> header = {"model", "size", "params", "backend", "threads"};
  for (const Parameter* parameter : shown) header.push_back(parameter->name);
  for (const char* name : {"test", "t/s", "GB/s", "of memory", "GFLOP/s"}) header.push_back(name);
  if (compacts)
    for (const char* name : {"t/s compacted", "gain", "bytes", "compaction"}) header.push_back(name);
  Table table(header, 1);
  for (const BenchResult& r : results) {
    const int64_t n = r.test.n_tokens();
    std::vector<std::string> row = {r.model_type, size_label(r.model_bytes), count_label(r.model_params), "CPU",
                                    fmt::format("{}", r.setup.n_threads)};
    for (const Parameter* parameter : shown) row.push_back(parameter->value(r.setup));
    row.push_back(r.test.name());
    row.push_back(rate_label(r.samples, n));
    const double bandwidth = generation_bandwidth(r.samples, r.bytes_per_token, r.test);
    row.push_back(bandwidth > 0 ? fmt::format("{:.2f}", bandwidth * 1e-9) : "");
    const double share = memory_share(r);
    row.push_back(share > 0 ? fmt::format("{:.0f} %", 100 * share) : r.is_in_cache ? "in cache" : "");
    row.push_back(r.flops > 0 ? fmt::format("{:.1f}", r.flops * 1e-9 / r.samples.mean_seconds()) : "");
    if (compacts && r.compacted) {
      row.push_back(rate_label(r.compacted->samples, n));
      row.push_back(
          fmt::format("{:+.0f} %", 100 * (r.compacted->samples.mean_rate(n) / r.samples.mean_rate(n) - 1)));
      row.push_back(fmt::format("1/{:.1f}", r.compacted->real_ratio));
      row.push_back(fmt::format("{:.2f} s", r.compacted->seconds));
    } else if (compacts) {
      row.insert(row.end(), 4, "");
    }
    table.add(std::move(row));
  }
  std::string text = table.markdown() + "\n";
  text += fmt::format("build: {} ({}), kernels {}, {}\n", build_info().commit, build_info().build_number,
                      results.empty() ? "" : results.front().kernels, machine_name());
  std::vector<int64_t> counted;
  for (const BenchResult& r : results) {
    if (r.memory_bandwidth <= 0 || std::find(counted.begin(), counted.end(), r.setup.n_threads) != counted.end())
      continue;
    counted.push_back(r.setup.n_threads);
    text += fmt::format(
        "memory: {:.1f} GB/s read with {} thread{}, measured before the tests; GB/s counts weights, keys and "
        "values of each generated token\n",
        r.memory_bandwidth * 1e-9, r.setup.n_threads, r.setup.n_threads == 1 ? "" : "s");
  }
  return text;
}

}  // namespace sh::tools
