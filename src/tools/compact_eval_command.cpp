// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "base/build_info.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mapped_file.h"
#include "engine/params.h"
#include "tools/check_outputs.h"
#include "tools/commands.h"
#include "tools/compact_eval.h"
#include "tools/eval_data.h"
#include "tools/eval_html.h"
#include "tools/eval_output.h"

namespace sh::tools {

namespace {

void use_data_beside_model(engine::ProgramParams& params) {
  engine::EvalParams& eval = params.eval;
  if (!eval.recall_files.empty() || !eval.prose_files.empty() || !eval.quality_files.empty() ||
      !eval.longhealth_files.empty())
    return;
  DataFiles found = data_beside(params.engine.model_path);
  eval.recall_files = std::move(found.recall);
  eval.prose_files = std::move(found.prose);
}

template <typename T>
bool has(const std::vector<T>& list, const T& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// Those of the files whose label is wanted. Errors: two files with one label.
Result<std::vector<std::string>> wanted_files(const char* flag, const std::vector<std::string>& files,
                                              const std::vector<std::string>& contexts,
                                              std::vector<std::string>& labels) {
  std::vector<std::string> out;
  for (const std::string& path : files) {
    const std::string label = label_of(path);
    if (!contexts.empty() && !has(contexts, label)) continue;
    if (has(labels, label))
      return Error{
          ErrorKind::invalid_argument,
          fmt::format("{}: more than one file named '{}': their rows could not be told apart", flag, label)};
    labels.push_back(label);
    out.push_back(path);
  }
  return out;
}

/// The patients of a document that --contexts asks for: "longhealth-5"; one without it.
Result<void> choose_patients(const engine::EvalParams& eval, EvalOptions& options,
                             std::vector<std::string>& labels) {
  if (eval.longhealth_files.size() > 1)
    return Error{ErrorKind::invalid_argument,
                 "--longhealth: one file at a time: rows of two could not be told apart"};
  for (const std::string& path : eval.longhealth_files)
    for (const int64_t n_patients : {1, 5}) {
      const std::string label = longhealth_label(n_patients);
      if (eval.contexts.empty() ? n_patients != 1 : !has(eval.contexts, label)) continue;
      labels.push_back(label);
      options.longhealth_files.push_back({path, n_patients});
    }
  return {};
}

/// Lengths of prose among the contexts. Errors: a context that is neither the label of a file nor, with prose to
/// cut, a length.
Result<void> choose_prose_contexts(const std::vector<std::string>& contexts,
                                   const std::vector<std::string>& labels, EvalOptions& options) {
  if (contexts.empty()) return {};
  options.prose_contexts.clear();
  for (const std::string& text : contexts) {
    int64_t n = 0;
    const char* end_of_text = text.data() + text.size();
    const auto [end, code] = std::from_chars(text.data(), end_of_text, n);
    const bool is_length = code == std::errc() && end == end_of_text && n >= 32 && n <= int64_t{1} << 40;
    const bool has_prose = !options.prose_files.empty();
    if (!(is_length && has_prose) && !has(labels, text))
      return Error{ErrorKind::invalid_argument,
                   fmt::format("--contexts: expected the name of a file with questions{}; got '{}'",
                               has_prose ? " or a prose context in tokens, at least 32"
                                         : " (there is no --prose that a length could be cut from)",
                               text)};
    if (is_length) options.prose_contexts.push_back(n);
  }
  return {};
}

Result<EvalOptions> eval_options(engine::ProgramParams& params) {
  use_data_beside_model(params);
  const engine::EvalParams& eval = params.eval;
  EvalOptions options{.prose_files = eval.prose_files,
                      .n_documents = eval.n_documents,
                      .n_choice_tokens = eval.n_choice_tokens,
                      .seed = params.sampling.seed == sampling::kRandomSeed ? 1 : params.sampling.seed};
  options.ratios.clear();
  for (const double ratio : eval.ratios)  // given twice it would count every document twice
    if (!has(options.ratios, ratio)) options.ratios.push_back(ratio);
  std::vector<std::string> labels;
  SH_ASSIGN(options.recall_files, wanted_files("--recall", eval.recall_files, eval.contexts, labels));
  SH_ASSIGN(options.quality_files, wanted_files("--quality", eval.quality_files, eval.contexts, labels));
  SH_RETURN_IF_ERROR(choose_patients(eval, options, labels));
  SH_RETURN_IF_ERROR(choose_prose_contexts(eval.contexts, labels, options));
  if (labels.empty() && options.prose_files.empty())
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("nothing to measure: no folder recall/ or prose/ beside '{}', or --contexts names none of "
                    "the files; give --recall FILE.jsonl or --prose FILE.txt",
                    params.engine.model_path)};
  for (const std::string& text : eval.methods) {
    const auto is_same = [&](const MethodSpec& spec) { return spec.label == text; };
    if (std::any_of(options.methods.begin(), options.methods.end(), is_same)) continue;
    SH_ASSIGN(MethodSpec spec, parse_method_spec(text));
    if (spec.request.budget == compaction::BudgetPolicy::profile && params.engine.compact_profile.empty())
      return Error{ErrorKind::invalid_argument,
                   fmt::format("method '{}': budget=profile needs --compact-profile FILE; 'shorthand profile' "
                               "measures one",
                               text)};
    spec.request.self_study.seed = options.seed;
    options.methods.push_back(std::move(spec));
  }
  const auto uses_profile = [](const MethodSpec& spec) {
    return spec.request.budget == compaction::BudgetPolicy::profile;
  };
  if (!params.engine.compact_profile.empty() &&
      std::none_of(options.methods.begin(), options.methods.end(), uses_profile))
    log_warning("--compact-profile is not used: no method of --methods has budget=profile");
  options.items_path = items_path_of(eval.json_path);
  if (!eval.json_path.empty() && options.items_path.empty())
    log_warning("--json: '{}' is no regular file: items are not written", eval.json_path);
  return options;
}

/// The context that documents must fit: what -c says, else what the model was trained for.
Result<int64_t> context_length(const engine::ProgramParams& params) {
  if (params.engine.model_path.empty())
    return Error{ErrorKind::invalid_argument,
                 "no model given: name a GGUF file with -m FILE (models/scribe.gguf comes with the program)"};
  SH_ASSIGN(const gguf::File file, gguf::File::open(params.engine.model_path));
  if (params.engine.n_ctx > 0) return params.engine.n_ctx;
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

Result<void> check_paths(const engine::ProgramParams& params, const EvalOptions& options) {
  const engine::EvalParams& eval = params.eval;
  std::vector<NamedPath> inputs = {{"-m", params.engine.model_path},
                                   {"--compact-profile", params.engine.compact_profile}};
  add_named(inputs, "--recall", eval.recall_files);
  add_named(inputs, "--prose", eval.prose_files);
  add_named(inputs, "--quality", eval.quality_files);
  add_named(inputs, "--longhealth", eval.longhealth_files);
  return check_outputs(
      {{"--json", eval.json_path}, {"--json's items", options.items_path}, {"--html", eval.html_path}}, inputs);
}

/// What compaction methods are measured against: the first one named.
std::string reference_method(const EvalOptions& options) {
  for (const MethodSpec& spec : options.methods)
    if (spec.has_ratios()) return spec.label;
  return "";
}

Result<Json> result_json(const engine::ProgramParams& params, Arguments arguments, engine::Engine& engine) {
  SH_ASSIGN(const std::string hash, file_hash(params.engine.model_path));
  const models::ModelInfo& info = engine.model().info();
  return Json{{"schema", 1},
              {"command", command_line(arguments)},
              {"commit", build_info().commit},
              {"machine", machine_name()},
              {"threads", engine.thread_pool().n_threads()},
              {"kernels", engine.kernels().name},
              {"model",
               {{"file", std::filesystem::path(params.engine.model_path).filename().string()},
                {"arch", info.arch},
                {"hash", hash},
                {"n_layer", info.n_layer},
                {"n_head_kv", engine.kv_layout().layers.front().n_heads},
                {"kv_bytes_per_token", engine.kv_layout().bytes_per_token()}}}};
}

Result<void> run(engine::ProgramParams& params, Arguments arguments) {
  // First, so that a missing model is not taken for missing data beside it.
  SH_ASSIGN(const int64_t n_context, context_length(params));
  SH_ASSIGN(EvalOptions options, eval_options(params));
  options.max_context_tokens = n_context;
  SH_RETURN_IF_ERROR(check_paths(params, options));
  // The document, the same again for memory and a second reading, and forks of both for the questions are held at
  // once.
  params.engine.n_ctx = 3 * options.max_context_tokens;
  params.engine.n_parallel = 1;
  SH_ASSIGN(const auto engine, engine::Engine::open(params.engine));
  for (const std::string& line : engine->describe()) log_info("{}", line);
  SH_ASSIGN(const EvalRun measured, run_compact_eval(*engine, options));

  std::vector<Json> rows;
  for (const EvalCell& cell : measured.cells) {
    rows.push_back(row_json(cell, options.seed));
    if (cell.refusals.empty()) continue;
    const size_t n_more = cell.refusals.size() - 1;
    log_warning("{} {} {}x refused: {}{}", cell.context, cell.method, cell.ratio, cell.refusals.front(),
                n_more > 0 ? fmt::format(" (and {} more documents)", n_more) : "");
  }
  const std::vector<std::string> no_verdicts =
      compare_rows(measured, reference_method(options), options.seed, rows);
  for (const std::string& reason : no_verdicts) log_warning("{}", reason);
  // The files are written even where the table cannot be: hours may stand behind them.
  const Result<void> printed = print_out(eval_table(rows) + lost_answers(measured.cells));
  if (params.eval.json_path.empty() && params.eval.html_path.empty()) return printed;

  SH_ASSIGN(Json result, result_json(params, arguments, *engine));
  result["warnings"] = no_verdicts;
  result["rows"] = rows;
  result.update(breakdowns_json(measured.cells));
  if (!params.eval.html_path.empty()) SH_RETURN_IF_ERROR(write_file(params.eval.html_path, eval_html(result)));
  if (!params.eval.json_path.empty())
    SH_RETURN_IF_ERROR(write_file(params.eval.json_path, dump_json(result, 1) + "\n"));
  return printed;
}

}  // namespace

int compact_eval_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kEval, arguments, params)) return *status;
  return exit_status(run(params, arguments));
}

}  // namespace sh::tools
