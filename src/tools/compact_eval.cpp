// SPDX-License-Identifier: MIT
#include "tools/compact_eval.h"

#include <fmt/format.h>

#include <cmath>
#include <set>

#include "base/clock.h"
#include "base/machine.h"
#include "engine/region_plan.h"
#include "tools/eval_measure.h"
#include "tools/eval_output.h"
#include "tools/eval_plan.h"
#include "tools/eval_texts.h"

namespace sh::tools {

namespace {

using engine::CompactionReport;
using engine::CompactionRequest;
using engine::Engine;
using engine::ReferenceQueries;
using kv::SequenceCache;

double bytes_of(const SequenceCache& cache) {
  return static_cast<double>(cache.usage().bytes);
}

/// Queries of one source and study serve all ratios, and all methods that differ in nothing of this.
std::string gathering_key(const compaction::CompactionMethod& method, const CompactionRequest& request) {
  const engine::SelfStudyOptions& study = request.self_study;
  return fmt::format("{}/{}/{}/{}/{}/{}/{}/{}/{}/{}/{}/{}/{}", compaction::name_of(method.queries),
                     method.reread_fraction, method.max_reread_tokens, request.n_recent_queries,
                     study.n_conversations, study.round_conversations, study.max_question_tokens,
                     study.max_answer_tokens, study.temperature, study.time_limit_seconds,
                     study.coverage_tolerance, study.coverage_rows, study.uses_prompts);
}

void add_report(const CompactionReport& report, EvalCost& cost, EvalCell& cell) {
  cost.seconds_total = report.total_seconds;
  cost.seconds_capture = report.capture_seconds;
  cost.seconds_select = report.select_seconds;
  cost.seconds_fit = report.fit_seconds;
  cost.heldout_plain = report.heldout_plain;
  cost.heldout_fitted = report.heldout_fitted;
  if (!std::isnan(report.heldout_plain)) cost.fallback_heads = report.fallback_heads;
  if (report.study.n_conversations > 0) {
    cost.study_conversations = report.study.n_conversations;
    cost.study_tokens = static_cast<double>(report.study.n_tokens);
  }
  if (report.check.n_tokens > 0) cost.check_kl = report.check.kl_mean;
  std::vector<double> errors;
  double log_mass = 0, log_mass_plain = 0, mean_log_mass = 0, n_worse = 0;
  for (const CompactionReport::Head& head : report.heads) {
    HeadFigures& figures = cell.heads[{head.layer, head.head}];
    figures.n_documents += 1;
    figures.rows += static_cast<double>(head.n_kept);
    if (head.fit.n_heldout_queries == 0) continue;
    figures.n_measured += 1;
    figures.error += head.fit.heldout_fitted;
    figures.worst = std::max(figures.worst, head.fit.heldout_fitted_worst);
    figures.plain += head.fit.heldout_plain;
    figures.log_mass += head.fit.log_mass_fitted;
    errors.push_back(head.fit.heldout_fitted);
    log_mass += head.fit.log_mass_fitted;
    log_mass_plain += head.fit.log_mass_plain;
    mean_log_mass += head.fit.mean_log_mass_fitted;
    n_worse += head.fit.heldout_fitted > head.fit.heldout_plain;
  }
  if (errors.empty()) return;
  const auto n = static_cast<double>(errors.size());
  cost.log_mass = log_mass / n;
  cost.log_mass_plain = log_mass_plain / n;
  cost.mean_log_mass = mean_log_mass / n;
  cost.worse_heads = n_worse / n;
  cost.heldout_median = quantile(std::move(errors), 0.5);
}

/// Resident memory around a compaction in place, of a cache of its own.
Result<void> add_memory(Engine& engine, const Subject& subject, const ReferenceQueries& queries,
                        const CompactionRequest& request, EvalCost& cost) {
  SequenceCache own(engine.block_pool());
  SH_RETURN_IF_ERROR(engine.prefill(own, subject.ids));
  cost.rss_before = static_cast<double>(resident_bytes());
  reset_peak_resident_bytes();
  SH_RETURN_IF_ERROR(engine::compact_sequence(engine.executor(), own, queries, request));
  if (const int64_t peak = peak_resident_bytes(); peak > 0)
    cost.peak_extra = std::max(0.0, static_cast<double>(peak) - cost.rss_before);
  cost.rss_after = static_cast<double>(resident_bytes());
  return {};
}

class Runner {
 public:
  Runner(Engine& engine, const EvalOptions& options)
      : engine_(engine), options_(options), methods_(options.methods) {}

  Result<EvalRun> run() {
    if (!options_.recall_files.empty() || !options_.quality_files.empty() || !options_.longhealth_files.empty()) {
      SH_ASSIGN(reader_, SubjectReader::create(engine_, options_.n_choice_tokens));
    }
    SH_ASSIGN(const std::vector<PlannedSubject> planned,
              plan_subjects(engine_, options_, reader_ ? &*reader_ : nullptr));
    SH_RETURN_IF_ERROR(lines_.open(options_.items_path));
    for (const MethodSpec& spec : methods_)
      if (spec.kv_type) open_quantised(*spec.kv_type);
    SH_RETURN_IF_ERROR(add_scale());
    EvalProgress progress(planned, static_cast<int64_t>(2 + methods_.size()), options_.has_progress);
    for (size_t i = 0; i < planned.size(); ++i) {
      progress.begin(i);
      const PlannedSubject& plan = planned[i];
      SH_ASSIGN(Subject subject, plan.continuation.empty() ? reader_->read(plan.context, plan.document, plan.ids)
                                                           : read_passage(engine_, plan.context, plan.document.id,
                                                                          plan.ids, plan.continuation));
      SH_RETURN_IF_ERROR(measure_subject(subject, plan.is_first, progress));
    }
    SH_RETURN_IF_ERROR(lines_.finish());
    return EvalRun{std::move(cells_), no_scale_};
  }

 private:
  /// An engine whose cache has another encoding, or why there is none.
  struct Quantised {
    std::unique_ptr<Engine> engine;
    std::string refusal;
  };
  /// A document's whole cache under one encoding, with the queries gathered from it.
  struct Side {
    Engine* engine = nullptr;
    const SequenceCache* cache = nullptr;
    double prefill_seconds = 0;
    std::map<std::string, ReferenceQueries> gathered = {};
    std::optional<SequenceCache> own = {};  // that `cache` points to, when it is not the subject's
  };

  /// Adds the caches that verdicts are calibrated on where the user did not name them: no other figure than the KL
  /// of these very questions and texts can be compared with the rows' (that of a replay of the context, in its
  /// place until now, was 200 times as high on short documents).
  Result<void> add_scale() {
    for (const DType type : {engine_.options().type_k, engine_.options().type_v})
      if (type != DType::f32 && type != DType::f16 && type != DType::bf16) {
        no_scale_ = fmt::format(
            "the full cache itself is in {}, and verdicts compare with q8_0 and q4_0 caches of "
            "a full one: run without -ctk and -ctv for verdicts",
            tensor_format(type).name);
        return {};
      }
    for (const char* label : {kScaleFine, kScaleCoarse}) {
      const auto is_same = [&](const MethodSpec& spec) { return spec.label == label; };
      SH_ASSIGN(MethodSpec spec, parse_method_spec(label));
      open_quantised(*spec.kv_type);
      if (quantised_.at(*spec.kv_type).engine == nullptr) {
        no_scale_ = fmt::format("they compare with q8_0 and q4_0 caches, and {} cannot be had: {}", label,
                                quantised_.at(*spec.kv_type).refusal);
        continue;
      }
      if (std::none_of(methods_.begin(), methods_.end(), is_same)) methods_.push_back(std::move(spec));
    }
    return {};
  }

  void open_quantised(DType type) {
    if (quantised_.contains(type)) return;
    engine::EngineOptions options = engine_.options();
    options.type_k = options.type_v = type;
    auto opened = Engine::open(options);
    Quantised& quantised = quantised_[type];
    if (opened.ok())
      quantised.engine = std::move(*opened);
    else
      quantised.refusal = opened.error().message;
  }

  EvalCell& cell(const std::string& context, const std::string& method, double ratio,
                 const std::map<std::string, std::string>& options = {}) {
    for (EvalCell& c : cells_)
      if (c.context == context && c.method == method && c.ratio == ratio) return c;
    cells_.push_back({.context = context, .method = method, .options = options, .ratio = ratio});
    return cells_.back();
  }

  Result<void> measure_into(EvalCell& into, Subject& subject, const Probe& probe,
                            const std::set<std::string>& asked = {}) {
    return measure_into(into, subject, probe, {0, subject.references.size()}, asked);
  }
  Result<void> measure_into(EvalCell& into, Subject& subject, const Probe& probe, ReferenceRange range,
                            const std::set<std::string>& asked = {}) {
    SH_ASSIGN(std::vector<EvalItem> items, measure_items(probe, subject, range, into.method, into.ratio));
    for (EvalItem& item : items) item.was_asked_in_study = asked.contains(trimmed(item.question));
    SH_RETURN_IF_ERROR(lines_.add(items));
    std::move(items.begin(), items.end(), std::back_inserter(into.items));
    return {};
  }

  EvalCost base_cost(const Subject& subject, const SequenceCache& after) const {
    EvalCost cost;
    cost.n_tokens = static_cast<double>(subject.ids.size());
    cost.bytes_before = bytes_of(subject.cache);
    cost.bytes_after = bytes_of(after);
    cost.seconds_prefill = subject.prefill_seconds;
    return cost;
  }

  Result<void> add_speeds(const Subject& subject, const Probe& probe, EvalCost& cost) {
    SH_ASSIGN(const auto speeds, decode_speeds({&engine_, &subject.cache}, probe));
    std::tie(cost.decode_tps_before, cost.decode_tps_after) = speeds;
    return {};
  }

  Result<void> measure_subject(Subject& subject, bool is_first, EvalProgress& progress) {
    for (const bool has_context : {true, false}) {
      EvalCell& anchor = cell(subject.context, has_context ? "full" : "none", has_context ? 1 : 0);
      const SequenceCache& cache = has_context ? subject.cache : subject.none;
      SH_RETURN_IF_ERROR(measure_into(anchor, subject, {&engine_, &cache}));
      anchor.costs.push_back(base_cost(subject, cache));
      progress.step();
    }
    std::map<std::optional<DType>, Side> sides;
    sides[std::nullopt] = {&engine_, &subject.cache, subject.prefill_seconds};
    for (const MethodSpec& spec : methods_) {
      switch (spec.kind) {
        case MethodSpec::Kind::rerun:
          SH_RETURN_IF_ERROR(rerun(subject, spec));
          break;
        case MethodSpec::Kind::reprefill:
          SH_RETURN_IF_ERROR(reprefill(subject, spec, is_first));
          break;
        case MethodSpec::Kind::summary:
          SH_RETURN_IF_ERROR(summarise(subject, spec, is_first));
          break;
        case MethodSpec::Kind::retrieval:
          SH_RETURN_IF_ERROR(retrieve(subject, spec, is_first));
          break;
        case MethodSpec::Kind::quantised:
        case MethodSpec::Kind::compaction: {
          SH_ASSIGN(Side * side, side_of(subject, spec.kv_type, sides));
          if (spec.kind == MethodSpec::Kind::quantised)
            SH_RETURN_IF_ERROR(quantise(subject, spec, side, is_first));
          else
            SH_RETURN_IF_ERROR(compact(subject, spec, side, is_first));
        }
      }
      progress.step();
    }
    return {};
  }

  /// nullptr when the encoding does not suit the model.
  Result<Side*> side_of(const Subject& subject, std::optional<DType> type,
                        std::map<std::optional<DType>, Side>& sides) {
    if (const auto known = sides.find(type); known != sides.end()) return &known->second;
    Engine* engine = quantised_.at(*type).engine.get();
    if (engine == nullptr) return nullptr;
    Side& side = sides[type];
    side.engine = engine;
    side.own.emplace(engine->block_pool());
    const Stopwatch watch;
    SH_RETURN_IF_ERROR(engine->prefill(*side.own, subject.ids));
    side.prefill_seconds = watch.seconds();
    side.cache = &*side.own;
    return &side;
  }

  Result<void> rerun(Subject& subject, const MethodSpec& spec) {
    EvalCell& into = cell(subject.context, spec.label, 1);
    SequenceCache again(engine_.block_pool());
    const auto n_piece = static_cast<size_t>(engine_.options().n_ubatch / 4 + 1);
    const Stopwatch watch;
    for (size_t at = 0; at < subject.ids.size(); at += n_piece)
      SH_RETURN_IF_ERROR(
          engine_.prefill(again, std::span(subject.ids).subspan(at, std::min(n_piece, subject.ids.size() - at))));
    EvalCost cost = base_cost(subject, again);
    cost.seconds_prefill = watch.seconds();
    into.costs.push_back(cost);
    return measure_into(into, subject, {&engine_, &again});
  }

  /// Tokens that a cache of so many times fewer bytes holds, in whole blocks.
  int64_t tokens_of(const Subject& subject, double ratio) const {
    const double n_room =
        bytes_of(subject.cache) / ratio / static_cast<double>(engine_.kv_layout().bytes_per_token());
    return static_cast<int64_t>(n_room) / kv::kBlockRows * kv::kBlockRows;
  }

  /// What engines without compaction do when the context is full: the first tokens and the newest, at positions
  /// without a gap.
  Result<void> reprefill(Subject& subject, const MethodSpec& spec, bool is_first) {
    const auto n_all = static_cast<int64_t>(subject.ids.size());
    for (const double ratio : options_.ratios) {
      EvalCell& into = cell(subject.context, spec.label, ratio, spec.options);
      const int64_t n_kept = std::min(n_all, tokens_of(subject, ratio));
      if (n_kept <= spec.n_keep) {
        into.refusals.push_back(
            fmt::format("{}: {} tokens fit, {} of them stay at the start", subject.id, n_kept, spec.n_keep));
        continue;
      }
      std::vector<int32_t> ids(subject.ids.begin(), subject.ids.begin() + spec.n_keep);
      ids.insert(ids.end(), subject.ids.end() - (n_kept - spec.n_keep), subject.ids.end());
      SequenceCache shifted(engine_.block_pool());
      const Stopwatch watch;
      SH_RETURN_IF_ERROR(engine_.prefill(shifted, ids));
      EvalCost cost = base_cost(subject, shifted);
      cost.seconds_total = watch.seconds();
      if (is_first) SH_RETURN_IF_ERROR(add_speeds(subject, {&engine_, &shifted}, cost));
      into.costs.push_back(cost);
      SH_RETURN_IF_ERROR(measure_into(into, subject, {&engine_, &shifted}));
    }
    return {};
  }

  /// Text in place of the cache, as the model itself shortens it: asking for it counts as the compaction's time.
  Result<void> summarise(Subject& subject, const MethodSpec& spec, bool is_first) {
    if (subject.text.empty()) return {};  // of passages no summary is asked: they are in no chat
    for (const double ratio : options_.ratios) {
      EvalCell& into = cell(subject.context, spec.label, ratio, spec.options);
      const Stopwatch watch;
      const auto ids = summary_tokens(*reader_, subject, tokens_of(subject, ratio));
      if (!ids.ok()) {
        into.refusals.push_back(fmt::format("{}: {}", subject.id, ids.error().message));
        continue;
      }
      SequenceCache summary(engine_.block_pool());
      SH_RETURN_IF_ERROR(engine_.prefill(summary, *ids));
      EvalCost cost = base_cost(subject, summary);
      cost.seconds_total = watch.seconds();
      if (is_first) SH_RETURN_IF_ERROR(add_speeds(subject, {&engine_, &summary}, cost));
      into.costs.push_back(cost);
      SH_RETURN_IF_ERROR(measure_into(into, subject, {&engine_, &summary}));
    }
    return {};
  }

  /// What people do with documents that are too long: passages looked up for each question and read. It knows the
  /// question; seconds and bytes are means over the questions.
  Result<void> retrieve(Subject& subject, const MethodSpec& spec, bool is_first) {
    if (subject.text.empty()) return {};  // passages have no questions
    for (const double ratio : options_.ratios) {
      EvalCell& into = cell(subject.context, spec.label, ratio, spec.options);
      EvalCost cost = base_cost(subject, subject.cache);
      cost.bytes_after = cost.seconds_total = 0;
      const auto n = static_cast<double>(subject.references.size());
      bool is_refused = false;
      for (size_t i = 0; i < subject.references.size() && !is_refused; ++i) {
        const Stopwatch watch;
        const auto ids = retrieved_tokens(*reader_, subject.text, subject.references[i].query, spec.n_words,
                                          tokens_of(subject, ratio));
        is_refused = !ids.ok();  // for want of room: then at the first question
        if (is_refused) {
          into.refusals.push_back(fmt::format("{}: {}", subject.id, ids.error().message));
          continue;
        }
        SequenceCache passages(engine_.block_pool());
        SH_RETURN_IF_ERROR(engine_.prefill(passages, *ids));
        cost.seconds_total += watch.seconds() / n;
        cost.bytes_after += bytes_of(passages) / n;
        if (is_first && i == 0) SH_RETURN_IF_ERROR(add_speeds(subject, {&engine_, &passages}, cost));
        SH_RETURN_IF_ERROR(measure_into(into, subject, {&engine_, &passages}, {i, 1}));
      }
      if (!is_refused) into.costs.push_back(cost);
    }
    return {};
  }

  Result<void> quantise(Subject& subject, const MethodSpec& spec, const Side* side, bool is_first) {
    if (side == nullptr) {
      cell(subject.context, spec.label, 1)
          .refusals.push_back(subject.id + ": " + quantised_.at(*spec.kv_type).refusal);
      return {};
    }
    const auto bytes_per_token = [](const Engine& engine) {
      return static_cast<double>(engine.kv_layout().bytes_per_token());
    };
    const double ratio = std::round(100 * bytes_per_token(engine_) / bytes_per_token(*side->engine)) / 100;
    EvalCell& into = cell(subject.context, spec.label, ratio);
    const Probe probe{side->engine, side->cache};
    EvalCost cost = base_cost(subject, *side->cache);
    cost.seconds_prefill = side->prefill_seconds;
    if (is_first) SH_RETURN_IF_ERROR(add_speeds(subject, probe, cost));
    into.costs.push_back(cost);
    return measure_into(into, subject, probe);
  }

  Result<void> compact(Subject& subject, const MethodSpec& spec, Side* side, bool is_first) {
    const auto refuse = [&](double ratio, const std::string& why) {
      cell(subject.context, spec.label, ratio, spec.options).refusals.push_back(subject.id + ": " + why);
    };
    if (side == nullptr) {
      for (const double ratio : options_.ratios) refuse(ratio, quantised_.at(*spec.kv_type).refusal);
      return {};
    }
    SH_ASSIGN(const compaction::CompactionMethod method, engine::method_of(spec.request));
    const std::string key = gathering_key(method, spec.request);
    if (!side->gathered.contains(key)) {
      auto queries = engine::gather_reference_queries(side->engine->executor(), *side->cache, subject.ids, nullptr,
                                                      spec.request);
      if (!queries.ok()) {
        for (const double ratio : options_.ratios) refuse(ratio, queries.error().message);
        return {};
      }
      side->gathered[key] = std::move(*queries);
    }
    const ReferenceQueries& queries = side->gathered[key];
    std::set<std::string> asked;
    for (const std::string& question : queries.study.questions) asked.insert(trimmed(question));

    const double smaller = bytes_of(subject.cache) / bytes_of(*side->cache);  // by the encoding
    for (const double ratio : options_.ratios) {
      CompactionRequest request = spec.request;
      request.ratio = ratio / smaller;
      request.of_whole_cache = true;
      if (request.ratio < 1) {
        refuse(ratio, fmt::format("the encoding alone makes the cache {:.2f} times smaller", smaller));
        continue;
      }
      SequenceCache compacted = side->cache->fork();
      const auto report = engine::compact_sequence(side->engine->executor(), compacted, queries, request);
      if (!report.ok()) {
        refuse(ratio, report.error().message);
        continue;
      }
      EvalCell& into = cell(subject.context, spec.label, ratio, spec.options);
      const Probe probe{side->engine, &compacted};
      EvalCost cost = base_cost(subject, compacted);
      cost.seconds_prefill = side->prefill_seconds;
      add_report(*report, cost, into);
      if (is_first) {
        SH_RETURN_IF_ERROR(add_speeds(subject, probe, cost));
        SH_RETURN_IF_ERROR(add_memory(*side->engine, subject, queries, request, cost));
      }
      into.costs.push_back(cost);
      SH_RETURN_IF_ERROR(measure_into(into, subject, probe, asked));
    }
    return {};
  }

  Engine& engine_;
  const EvalOptions& options_;
  std::optional<SubjectReader> reader_;  // when there are documents
  std::vector<MethodSpec> methods_;      // the user's, and what verdicts need
  ItemLines lines_;
  std::map<DType, Quantised> quantised_;
  std::vector<EvalCell> cells_;
  std::string no_scale_;
};

}  // namespace

std::string longhealth_label(int64_t n_patients) {
  return fmt::format("longhealth-{}", n_patients);
}

Result<EvalRun> run_compact_eval(Engine& engine, const EvalOptions& options) {
  return Runner(engine, options).run();
}

}  // namespace sh::tools
