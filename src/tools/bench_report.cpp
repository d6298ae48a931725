// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

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

/// "50 %"; nothing for 0.
std::string percent(double share) {
  return share > 0 ? fmt::format("{:.0f} %", 100 * share) : "";
}

double generation_bandwidth(const Samples& samples, double bytes_per_token, const BenchTest& test) {
  return bytes_per_token * samples.mean_rate(test.n_tokens());
}

/// Of the memory's speed; 0 when that was not measured or is not what the test ran at.
double memory_share(const BenchResult& r) {
  if (r.memory_bandwidth <= 0 || r.is_in_cache) return 0;
  return generation_bandwidth(r.samples, r.bytes_per_token, r.test) / r.memory_bandwidth;
}

/// The time that a prompt's operations take at the peaks of their instructions, of the time that they took; 0 when
/// the peaks were not measured or there is more to the test than a prompt.
double arithmetic_share(const BenchResult& r) {
  const engine::Operations& operations = r.operations;
  const auto seconds = [](double n, double peak) { return n > 0 ? n / peak : 0; };
  const double at_peak = seconds(operations.byte_products, r.peaks.byte_products) +
                         seconds(operations.multiply_adds, r.peaks.multiply_adds);
  return std::isfinite(at_peak) ? at_peak / r.samples.mean_seconds() : 0;
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

Json if_known(double value) {
  return value > 0 ? Json(value) : Json();
}

/// Needs: a compacted result.
Json compaction_json(const BenchOptions& options, const BenchResult& r) {
  const CompactedResult& c = *r.compacted;
  Json json = {{"method", options.compact_method}, {"ratio", options.compaction.ratio},
               {"real_ratio", c.real_ratio},       {"seconds", c.seconds},
               {"rows_before", c.rows_before},     {"rows_after", c.rows_after}};
  add_samples(json, c.samples, r.test.n_tokens());
  json["kv_bytes"] = c.kv_bytes;
  json["bytes_per_token"] = if_known(c.bytes_per_token);
  json["gb_per_s"] = if_known(generation_bandwidth(c.samples, c.bytes_per_token, r.test) * 1e-9);
  return json;
}

/// As text, with what ends a quotation doubled; truth values are numbers, as llama-bench prints them.
std::string flat_text(const Json& value, char quote) {
  if (value.is_boolean()) return value.get<bool>() ? "1" : "0";
  std::string text = value.is_string() ? value.get<std::string>() : value.is_null() ? "" : dump_json(value);
  for (size_t at = 0; (at = text.find(quote, at)) != std::string::npos; at += 2) text.insert(at, 1, quote);
  return text;
}

}  // namespace

Json bench_json(const BenchOptions& options, const BenchResult& r) {
  const int64_t n = r.test.n_tokens();
  Json json = {{"build_commit", build_info().commit},
               {"build_number", std::atoll(build_info().build_number)},
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
               {"cpu_mask", "0x0"},
               {"cpu_strict", false},
               {"poll", 50},  // llama.cpp's middle: threads spin for a while, then sleep
               {"type_k", tensor_format(r.setup.type_k).name},
               {"type_v", tensor_format(r.setup.type_v).name},
               {"n_gpu_layers", 0},
               {"n_cpu_moe", 0},
               {"split_mode", "none"},
               {"main_gpu", 0},
               {"no_kv_offload", true},
               {"flash_attn", 1},
               {"devices", "none"},
               {"tensor_split", "0.00"},
               {"tensor_buft_overrides", "none"},
               {"load_mode", "mmap"},
               {"lazy_mode", "auto"},
               {"embeddings", false},
               {"no_op_offload", 1},
               {"no_host", false},
               {"fit_target", 0},
               {"fit_min_ctx", 0},
               {"n_prompt", r.test.n_prompt},
               {"n_gen", r.test.n_gen},
               {"n_depth", r.test.n_depth},
               {"n_parallel", r.test.n_parallel},
               {"test_time", r.time}};
  add_samples(json, r.samples, n);
  const double bandwidth = generation_bandwidth(r.samples, r.bytes_per_token, r.test);
  json["kv_bytes"] = r.kv_bytes;
  json["bytes_per_token"] = if_known(r.bytes_per_token);
  json["gb_per_s"] = if_known(bandwidth * 1e-9);
  json["memory_gb_per_s"] = if_known(r.memory_bandwidth * 1e-9);
  json["memory_share"] = if_known(memory_share(r));
  json["gop_per_s"] = if_known(r.operations.total() * 1e-9 / r.samples.mean_seconds());
  json["byte_product_gop_per_s"] = if_known(r.peaks.byte_products * 1e-9);
  json["multiply_add_gflop_per_s"] = if_known(r.peaks.multiply_adds * 1e-9);
  json["arithmetic_share"] = if_known(arithmetic_share(r));
  json["compaction"] = nullptr;
  if (r.compacted) json["compaction"] = compaction_json(options, r);
  return json;
}

Json bench_flat_json(const BenchOptions& options, const BenchResult& r) {
  Json flat;
  const Json row = bench_json(options, r);
  for (const auto& [key, value] : row.items())
    if (key != "compaction" && !value.is_array()) flat[key] = value;
  if (options.compact_method.empty()) return flat;
  BenchResult shape = r;  // with all fields of a compaction
  if (!r.compacted) shape.compacted.emplace();
  const Json compaction = compaction_json(options, shape);
  for (const auto& [key, value] : compaction.items()) {
    if (value.is_array()) continue;
    Json& field = flat["compaction_" + key];
    if (r.compacted) field = value;
  }
  return flat;
}

std::string bench_csv_header(const Json& row) {
  std::string line;
  for (const auto& [key, value] : row.items()) line += (line.empty() ? "" : ",") + key;
  return line + "\n";
}

std::string bench_csv_row(const Json& row) {
  std::string line;
  for (const auto& [key, value] : row.items()) line += (line.empty() ? "\"" : ",\"") + flat_text(value, '"') + '"';
  return line + "\n";
}

std::string bench_sql_table(const Json& row) {
  std::string columns;
  for (const auto& [key, value] : row.items()) {
    const bool is_integer = value.is_number_integer() || value.is_boolean();
    columns += fmt::format("{}  {} {}", columns.empty() ? "" : ",\n", key,
                           value.is_string() ? "TEXT"
                           : is_integer      ? "INTEGER"
                                             : "REAL");
  }
  return fmt::format("CREATE TABLE IF NOT EXISTS llama_bench (\n{}\n);\n\n", columns);
}

std::string bench_sql_row(const Json& row) {
  std::string names, values;
  for (const auto& [key, value] : row.items()) {
    const char* separator = names.empty() ? "" : ", ";
    names += separator + key;
    values += separator + (value.is_null() ? "NULL" : "'" + flat_text(value, '\'') + "'");
  }
  return fmt::format("INSERT INTO llama_bench ({}) VALUES ({});\n", names, values);
}

BenchWriter::BenchWriter(std::FILE* file, std::string format, const BenchOptions& options)
    : file_(file), format_(std::move(format)), options_(options) {
  if (format_ == "json") fmt::print(file_, "[\n");
}

void BenchWriter::add(const BenchResult& result) {
  const bool is_first = results_.empty();
  if (format_ == "json")
    fmt::print(file_, "{}{}", is_first ? "" : ",\n", dump_json(bench_json(options_, result), 2));
  if (format_ == "jsonl") fmt::print(file_, "{}\n", dump_json(bench_json(options_, result)));
  if (format_ == "csv") {
    const Json row = bench_flat_json(options_, result);
    fmt::print(file_, "{}{}", is_first ? bench_csv_header(row) : "", bench_csv_row(row));
  }
  if (format_ == "sql" && is_first) {
    // Columns have the types that a compaction's figures have, also if this test has none.
    BenchResult shape = result;
    if (!shape.compacted) shape.compacted.emplace();
    fmt::print(file_, "{}", bench_sql_table(bench_flat_json(options_, shape)));
  }
  if (format_ == "sql") fmt::print(file_, "{}", bench_sql_row(bench_flat_json(options_, result)));
  std::fflush(file_);
  results_.push_back(result);
}

void BenchWriter::end() {
  if (format_ == "json") fmt::print(file_, "\n]\n");
  if (format_ == "md" && !results_.empty()) fmt::print(file_, "{}", bench_markdown(options_, results_));
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
  for (const char* name : {"test", "t/s", "KV", "GB/s", "of memory", "Gop/s", "of peak"}) header.push_back(name);
  if (compacts)
    for (const char* name : {"compaction", "t/s compacted", "gain", "KV compacted", "ratio", "seconds"})
      header.push_back(name);
  Table table(header, 1);
  for (const BenchResult& r : results) {
    const int64_t n = r.test.n_tokens();
    std::vector<std::string> row = {r.model_type, size_label(r.model_bytes), count_label(r.model_params), "CPU",
                                    fmt::format("{}", r.setup.n_threads)};
    for (const Parameter* parameter : shown) row.push_back(parameter->value(r.setup));
    row.push_back(r.test.name());
    row.push_back(rate_label(r.samples, n));
    row.push_back(size_label(r.kv_bytes));
    const double bandwidth = generation_bandwidth(r.samples, r.bytes_per_token, r.test);
    row.push_back(bandwidth > 0 ? fmt::format("{:.2f}", bandwidth * 1e-9) : "");
    row.push_back(r.is_in_cache ? "in cache" : percent(memory_share(r)));
    row.push_back(r.operations.total() > 0
                      ? fmt::format("{:.1f}", r.operations.total() * 1e-9 / r.samples.mean_seconds())
                      : "");
    row.push_back(percent(arithmetic_share(r)));
    if (compacts && r.compacted) {
      row.push_back(options.compact_method);
      row.push_back(rate_label(r.compacted->samples, n));
      row.push_back(
          fmt::format("{:+.0f} %", 100 * (r.compacted->samples.mean_rate(n) / r.samples.mean_rate(n) - 1)));
      row.push_back(size_label(r.compacted->kv_bytes));
      row.push_back(fmt::format("{:.1f}x", r.compacted->real_ratio));
      row.push_back(fmt::format("{:.2f}", r.compacted->seconds));
    } else if (compacts) {
      row.insert(row.end(), 6, "");
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
    text += fmt::format("with {} thread{}, before the tests: {:.1f} GB/s of memory", r.setup.n_threads,
                        r.setup.n_threads == 1 ? "" : "s", r.memory_bandwidth * 1e-9);
    if (r.peaks.multiply_adds > 0)
      text += fmt::format(", {:.0f} GFLOP/s of float multiply-adds, {:.0f} Gop/s of byte products",
                          r.peaks.multiply_adds * 1e-9, r.peaks.byte_products * 1e-9);
    text += "\n";
  }
  if (counted.empty()) return text;
  return text +
         "GB/s: weights, keys and values that each generated token reads; Gop/s: multiplications and additions of "
         "a prompt, of quantised weights as byte products, of the rest as floats; of peak: the time that they "
         "would take at the speeds above, of the time that they took\n";
}

}  // namespace sh::tools
