// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>

#include "base/build_info.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mapped_file.h"
#include "engine/params.h"
#include "tools/commands.h"
#include "tools/compact_eval.h"

namespace sh::tools {

namespace {

/// Recall files and prose beside the model, for a call that names none: models/recall/*.jsonl, models/prose/*.txt.
void use_data_beside_model(engine::ProgramParams& params) {
  const std::string folder = std::filesystem::path(params.engine.model_path).parent_path().string();
  const std::string root = folder.empty() ? "." : folder;
  if (!params.eval.recall_files.empty() || !params.eval.prose_files.empty()) return;
  params.eval.recall_files = files_in(root + "/recall", ".jsonl");
  params.eval.prose_files = files_in(root + "/prose", ".txt");
}

Result<EvalOptions> eval_options(engine::ProgramParams& params) {
  use_data_beside_model(params);
  EvalOptions options{.prose_files = params.eval.prose_files, .n_documents = params.eval.n_documents,
                      .seed = params.sampling.seed == sampling::kRandomSeed ? 1 : params.sampling.seed};
  options.ratios.clear();
  for (const double ratio : params.eval.ratios)  // given twice it would count every document twice
    if (std::find(options.ratios.begin(), options.ratios.end(), ratio) == options.ratios.end()) options.ratios.push_back(ratio);
  const auto& wanted = params.eval.contexts;
  for (const std::string& path : params.eval.recall_files)
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), label_of(path)) != wanted.end()) options.recall_files.push_back(path);
  for (const std::string& path : options.recall_files)
    if (std::count_if(options.recall_files.begin(), options.recall_files.end(), [&](const std::string& other) { return label_of(other) == label_of(path); }) > 1)
      return Error{ErrorKind::invalid_argument, fmt::format("--recall: more than one file named '{}': their rows could not be told apart", label_of(path))};
  if (!wanted.empty() && !options.prose_files.empty()) {
    options.prose_contexts.clear();
    for (const std::string& text : wanted) {
      int64_t n = 0;
      const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), n);
      const bool is_length = code == std::errc() && end == text.data() + text.size() && n >= 32 && n <= int64_t{1} << 40;
      const bool is_recall = std::any_of(options.recall_files.begin(), options.recall_files.end(), [&](const std::string& path) { return label_of(path) == text; });
      if (!is_length && !is_recall)
        return Error{ErrorKind::invalid_argument,
                     fmt::format("--contexts: expected the name of a recall file or a prose context in tokens, at least 32; got '{}'", text)};
      if (is_length) options.prose_contexts.push_back(n);
    }
  }
  if (options.recall_files.empty() && options.prose_files.empty())
    return Error{ErrorKind::invalid_argument, fmt::format("nothing to measure: no folder recall/ or prose/ beside '{}', or --contexts names none of the files; give --recall FILE.jsonl or --prose FILE.txt",
                                                          params.engine.model_path)};
  for (const std::string& text : params.eval.methods) {
    if (std::any_of(options.methods.begin(), options.methods.end(), [&](const MethodSpec& spec) { return spec.label == text; })) continue;
    SH_ASSIGN(MethodSpec spec, parse_method_spec(text));
    spec.request.self_study.seed = options.seed;
    options.methods.push_back(std::move(spec));
  }
  return options;
}

/// The context that documents must fit: what -c says, else what the model was trained for.
Result<int64_t> context_length(const engine::ProgramParams& params) {
  if (params.engine.n_ctx > 0) return params.engine.n_ctx;
  SH_ASSIGN(const gguf::File file, gguf::File::open(params.engine.model_path));
  SH_ASSIGN(const std::string arch, file.require_string("general.architecture"));
  return file.require_int(arch + ".context_length");
}

Result<std::string> file_hash(const std::string& path) {
  SH_ASSIGN(const MappedFile file, MappedFile::open(path));
  const XXH128_hash_t hash = XXH3_128bits(file.bytes().data(), file.bytes().size());
  return fmt::format("xxh3:{:016x}{:016x}", hash.high64, hash.low64);
}

std::string command_line(Arguments arguments) {
  std::string line = "shorthand compact-eval";
  for (const std::string& argument : arguments) line += " " + argument;
  return line;
}

Result<void> run(engine::ProgramParams& params, Arguments arguments) {
  SH_ASSIGN(EvalOptions options, eval_options(params));
  SH_ASSIGN(options.max_context_tokens, context_length(params));
  // The document, the same again for memory and capture, and forks of both for the questions are held at once.
  params.engine.n_ctx = 3 * options.max_context_tokens;
  params.engine.n_parallel = 1;
  SH_ASSIGN(const auto engine, engine::Engine::open(params.engine));
  for (const std::string& line : engine->describe()) log_info("{}", line);
  SH_ASSIGN(const std::vector<EvalCell> cells, run_compact_eval(*engine, options));

  std::vector<Json> rows;
  for (const EvalCell& cell : cells) {
    rows.push_back(row_json(cell, options.seed));
    for (const std::string& refusal : cell.refusals) log_warning("{} {} {}x refused: {}", cell.context, cell.method, cell.ratio, refusal);
  }
  fmt::print("{}", eval_table(rows));
  if (params.eval.json_path.empty()) return {};

  SH_ASSIGN(const std::string hash, file_hash(params.engine.model_path));
  const models::ModelInfo& info = engine->model().info();
  const Json result = {{"schema", 1},
                       {"command", command_line(arguments)},
                       {"commit", build_info().commit},
                       {"machine", machine_name()},
                       {"threads", engine->thread_pool().n_threads()},
                       {"kernels", engine->kernels().name},
                       {"model",
                        {{"file", std::filesystem::path(params.engine.model_path).filename().string()},
                         {"arch", info.arch},
                         {"hash", hash},
                         {"n_layer", info.n_layer},
                         {"n_head_kv", engine->kv_layout().layers.front().n_heads},
                         {"kv_bytes_per_token", engine->kv_layout().bytes_per_token()}}},
                       {"rows", rows}};
  SH_RETURN_IF_ERROR(write_file(params.eval.json_path, dump_json(result, 1) + "\n"));
  std::string items;
  for (const EvalCell& cell : cells)
    for (const EvalItem& item : cell.items) items += dump_json(item_json(item)) + "\n";
  return write_file(params.eval.json_path + ".items.jsonl", items);
}

}  // namespace

int compact_eval_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kEval, arguments, params)) return *status;
  return exit_status(run(params, arguments));
}

}  // namespace sh::tools
