// SPDX-License-Identifier: MIT
// shorthand profile: how the heads of a model share a compacted cache, as the mean over documents.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "base/clock.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "engine/measure_profile.h"
#include "tools/check_outputs.h"
#include "tools/commands.h"
#include "tools/eval_methods.h"
#include "tools/eval_plan.h"
#include "tools/table.h"
#include "tools/terminal.h"

namespace sh::tools {

namespace {

using compaction::HeadProfile;

/// The files to measure on, as plan_subjects() wants them.
Result<EvalOptions> documents_of(const engine::ProgramParams& params) {
  const engine::ProfileParams& profile = params.profile;
  EvalOptions options{.recall_files = profile.recall_files,
                      .prose_files = profile.text_files,
                      .prose_contexts = {profile.n_tokens},
                      .n_documents = profile.n_documents};
  if (options.recall_files.empty() && options.prose_files.empty()) {
    DataFiles found = data_beside(params.engine.model_path);
    options.recall_files = std::move(found.recall);
    options.prose_files = std::move(found.prose);
  }
  if (options.recall_files.empty() && options.prose_files.empty())
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("nothing to measure on: no folder recall/ or prose/ beside '{}'; give --text FILE.txt or "
                    "--recall FILE.jsonl",
                    params.engine.model_path)};
  return options;
}

/// Errors: see check_outputs().
Result<void> check_paths(const engine::ProgramParams& params, const EvalOptions& documents) {
  std::vector<NamedPath> inputs = {{"-m", params.engine.model_path}};
  add_named(inputs, "--recall", documents.recall_files);
  add_named(inputs, "--text", documents.prose_files);
  return check_outputs({{"-o", params.tool.output_path}}, inputs);
}

/// One profile a document.
Result<std::vector<HeadProfile>> measure(engine::Engine& engine, const std::vector<PlannedSubject>& documents,
                                         const engine::CompactionRequest& request, const std::string& label) {
  const std::atomic<bool>& cancel = catch_interrupts();
  ProgressLine line;
  std::vector<HeadProfile> profiles;
  for (const PlannedSubject& document : documents) {
    const auto show = [&](const char* stage, double fraction) {
      line.show(fmt::format("document {} of {} ({}, {} tokens): {} {:.0f} %", profiles.size() + 1,
                            documents.size(), document.document.id, document.ids.size(), stage, fraction * 100));
    };
    show("read", 0);
    kv::SequenceCache cache(engine.block_pool());
    SH_RETURN_IF_ERROR(engine.prefill(cache, document.ids));
    SH_ASSIGN(HeadProfile profile,
              engine::measure_profile(engine.executor(), cache, document.ids, request, &cancel, show));
    profile.method = label;
    profiles.push_back(std::move(profile));
  }
  return profiles;
}

/// Lines for people: the heads by their share, of many heads the first and the last.
std::string profile_table(const HeadProfile& mean, const std::vector<HeadProfile>& profiles) {
  constexpr size_t kFirst = 24, kLast = 8;
  std::vector<compaction::HeadId> heads;
  for (size_t layer = 0; layer < mean.shares.size(); ++layer)
    for (size_t head = 0; head < mean.shares[layer].size(); ++head)
      heads.push_back({static_cast<int32_t>(layer), static_cast<int32_t>(head)});
  const auto share = [](const HeadProfile& profile, compaction::HeadId id) {
    return profile.shares[static_cast<size_t>(id.layer)][static_cast<size_t>(id.head)];
  };
  std::stable_sort(heads.begin(), heads.end(), [&](auto a, auto b) { return share(mean, a) > share(mean, b); });

  const auto n_heads = static_cast<double>(heads.size());
  Table table({"head", "share", "of an even one", "least", "most"}, 1);
  for (size_t i = 0; i < heads.size(); ++i) {
    if (heads.size() > kFirst + kLast && i == kFirst) {
      table.add({"...", "", "", "", ""});
      i = heads.size() - kLast;
    }
    float least = 1, most = 0;
    for (const HeadProfile& profile : profiles) {
      least = std::min(least, share(profile, heads[i]));
      most = std::max(most, share(profile, heads[i]));
    }
    const float value = share(mean, heads[i]);
    table.add({compaction::name_of(heads[i]), fmt::format("{:.2f} %", 100 * value),
               fmt::format("{:.2f}", static_cast<double>(value) * n_heads), fmt::format("{:.2f} %", 100 * least),
               fmt::format("{:.2f} %", 100 * most)});
  }
  double of_first_quarter = 0;
  const size_t n_quarter = (heads.size() + 3) / 4;
  for (size_t i = 0; i < n_quarter; ++i) of_first_quarter += static_cast<double>(share(mean, heads[i]));
  return fmt::format("{}\nthe first {} of {} heads have {:.0f} % of the rows\n", table.markdown(), n_quarter,
                     heads.size(), 100 * of_first_quarter);
}

Result<void> run(engine::ProgramParams& params) {
  if (params.tool.output_path.empty())
    return Error{ErrorKind::invalid_argument, "no output given: name a file with -o FILE.json"};
  SH_ASSIGN(engine::CompactionRequest request, parse_compaction("--method", params.profile.method));
  request.ratio = params.profile.ratio;
  SH_ASSIGN(EvalOptions options, documents_of(params));
  SH_RETURN_IF_ERROR(check_paths(params, options));
  SH_ASSIGN(const auto engine, engine::Engine::open(params.engine));
  for (const std::string& line : engine->describe()) log_info("{}", line);
  options.max_context_tokens = engine->n_ctx();
  SH_ASSIGN(const SubjectReader reader, SubjectReader::create(*engine, 0));
  SH_ASSIGN(const std::vector<PlannedSubject> documents, plan_subjects(*engine, options, &reader));

  const Stopwatch watch;
  SH_ASSIGN(const std::vector<HeadProfile> profiles, measure(*engine, documents, request, params.profile.method));
  SH_ASSIGN(const HeadProfile mean, compaction::average(profiles));
  SH_RETURN_IF_ERROR(write_file(params.tool.output_path, compaction::format_head_profile(mean)));
  fmt::print("{}{}: {} documents at {}x by {} in {:.1f} s\n", profile_table(mean, profiles),
             params.tool.output_path, mean.n_documents, mean.ratio, mean.method, watch.seconds());
  return {};
}

}  // namespace

int profile_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kProfile, arguments, params)) return *status;
  return exit_status(run(params));
}

}  // namespace sh::tools
