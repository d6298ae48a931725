// SPDX-License-Identifier: MIT
#include "server/compaction_json.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

namespace sh::server {
namespace {

using engine::CompactionReport;

constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();  // null in JSON
constexpr size_t kMaxWorstHeads = 10;

bool is_measured(const CompactionReport::Head& head) {
  return head.fit.n_heldout_queries > 0;
}

Json head_json(const CompactionReport::Head& head) {
  const bool measured = is_measured(head);
  return {{"layer", head.layer},
          {"head", head.head},
          {"rows_before", head.n_before},
          {"rows", head.n_kept},
          {"n_queries", head.fit.n_fit_queries + head.fit.n_heldout_queries},
          {"heldout_error", measured ? head.fit.heldout_fitted : kNotMeasured},
          {"heldout_error_unfitted", measured ? head.fit.heldout_plain : kNotMeasured},
          {"heldout_error_worst", measured ? head.fit.heldout_fitted_worst : kNotMeasured},
          {"is_fit_accepted", head.fit.is_fit_accepted}};
}

/// One line a layer: rows, mean and worst error over its heads.
Json layers_json(const CompactionReport& report) {
  struct Layer {
    int64_t n_heads = 0, n_before = 0, n_kept = 0, n_measured = 0;
    double error = 0, worst = 0;
  };
  std::map<int32_t, Layer> layers;
  for (const CompactionReport::Head& head : report.heads) {
    Layer& layer = layers[head.layer];
    ++layer.n_heads;
    layer.n_before += head.n_before;
    layer.n_kept += head.n_kept;
    if (!is_measured(head)) continue;
    ++layer.n_measured;
    layer.error += head.fit.heldout_fitted;
    layer.worst = std::max(layer.worst, head.fit.heldout_fitted_worst);
  }
  Json out = Json::array();
  for (const auto& [index, layer] : layers) {
    const auto n_heads = static_cast<double>(layer.n_heads), n_measured = static_cast<double>(layer.n_measured);
    out.push_back({{"layer", index},
                   {"rows_before", static_cast<double>(layer.n_before) / n_heads},
                   {"rows", static_cast<double>(layer.n_kept) / n_heads},
                   {"heldout_error", layer.n_measured > 0 ? layer.error / n_measured : kNotMeasured},
                   {"heldout_error_worst", layer.n_measured > 0 ? layer.worst : kNotMeasured}});
  }
  return out;
}

Json worst_heads_json(const CompactionReport& report) {
  std::vector<const CompactionReport::Head*> heads;
  for (const CompactionReport::Head& head : report.heads)
    if (is_measured(head)) heads.push_back(&head);
  std::stable_sort(heads.begin(), heads.end(),
                   [](const auto* a, const auto* b) { return a->fit.heldout_fitted > b->fit.heldout_fitted; });
  Json out = Json::array();
  for (size_t i = 0; i < std::min(heads.size(), kMaxWorstHeads); ++i) out.push_back(head_json(*heads[i]));
  return out;
}

Json spans_json(const std::vector<engine::CompactionRecord::Excerpt>& excerpts) {
  Json out = Json::array();
  for (const auto& excerpt : excerpts)
    out.push_back({{"start", excerpt.span.begin}, {"end", excerpt.span.end}, {"text", excerpt.text}});
  return out;
}

Json study_json(const engine::StudyStats& study) {
  return {{"n_conversations", study.n_conversations},
          {"n_rounds", study.n_rounds},
          {"n_repeated", study.n_repeated},
          {"n_tokens", study.n_tokens},
          {"seconds", study.seconds},
          {"last_round_change", study.last_round_change >= 0 ? study.last_round_change : kNotMeasured},
          {"hit_time_limit", study.hit_time_limit},
          {"questions", study.questions}};
}

}  // namespace

RegionRows mean_region_rows(const CompactionReport& report) {
  RegionRows mean;
  const auto n_heads = static_cast<double>(report.heads.size());
  for (const auto& head : report.heads) {
    mean.before += static_cast<double>(head.n_before) / n_heads;
    mean.kept += static_cast<double>(head.n_kept) / n_heads;
  }
  return mean;
}

Json check_json(const engine::ReplayCheck& check) {
  const auto measured = [&](double value) { return check.n_tokens > 0 ? value : kNotMeasured; };
  const char* before = check.is_of_compacted ? "compacted" : "uncompacted";
  return {{"n_tokens", check.n_tokens},
          {"compared_with", check.n_tokens > 0 ? Json(before) : Json()},
          {"kl_mean", measured(check.kl_mean)},
          {"kl_median", measured(check.kl_median)},
          {"kl_p99", measured(check.kl_p99)},
          {"top1", measured(check.top1)},
          {"confident_flips", measured(check.confident_flips)},
          {"n_fits_dropped", check.n_fits_dropped},
          {"seconds", check.seconds}};
}

Json compaction_json(const CompactionReport& report, bool is_automatic) {
  return compaction_json(std::vector<engine::CompactionEvent>{{.report = report, .is_automatic = is_automatic}});
}

Json compaction_json(const std::vector<engine::CompactionEvent>& compactions) {
  const CompactionReport& first = compactions.front().report;
  const CompactionReport& last = compactions.back().report;
  double seconds = 0;
  for (const engine::CompactionEvent& event : compactions) seconds += event.report.total_seconds;
  return Json{{"n_compactions", last.n_compactions},
              {"method", last.method},
              {"queries", compaction::name_of(last.queries)},
              {"n_logical", last.n_logical},
              {"n_physical_before", first.rows_before},
              {"n_physical", last.rows_after},
              {"bytes_before", first.bytes_before},
              {"bytes_after", last.bytes_after},
              {"region_ratio", last.region_ratio},
              {"real_ratio", last.real_ratio},
              {"seconds", seconds},
              {"heldout_error", last.heldout_fitted},
              {"heldout_error_unfitted", last.heldout_plain},
              {"verdict", engine::name_of(last.check.verdict)},
              {"check", check_json(last.check)},
              {"is_automatic", compactions.back().is_automatic}};
}

Json compaction_state_json(const engine::SlotStatus& slot) {
  if (slot.compaction) {
    const engine::CompactionProgressStatus& now = *slot.compaction;
    return Json{{"state", now.stage == engine::kWaitingStage ? "waiting" : "running"},
                {"stage", now.stage},
                {"stage_progress", now.stage_fraction},
                {"progress", now.fraction},
                {"seconds", now.seconds},
                {"method", now.method},
                {"is_automatic", now.is_automatic}};
  }
  if (!slot.compaction_failure.empty())
    return Json{{"state", "failed"}, {"progress", 0.0}, {"error", slot.compaction_failure}};
  if (!slot.last_compaction) return Json{{"state", "none"}, {"progress", 0.0}};
  const CompactionReport& report = slot.last_compaction->report;
  return Json{{"state", "done"},
              {"progress", 1.0},
              {"seconds", report.total_seconds},
              {"method", report.method},
              {"is_automatic", slot.last_compaction->is_automatic},
              {"verdict", engine::name_of(report.check.verdict)}};
}

Json record_json(const engine::CompactionRecord& record) {
  const CompactionReport& report = record.report;
  Json heads = Json::array();
  for (const auto& head : report.heads) heads.push_back(head_json(head));
  Json out = compaction_json(report, record.is_automatic);
  out["n_region"] = report.n_region;
  out["n_queries"] = report.n_queries;
  out["head_error"] = report.head_error;
  out["fallback_heads"] = report.fallback_heads;
  out["capture_seconds"] = report.capture_seconds;
  out["select_seconds"] = report.select_seconds;
  out["fit_seconds"] = report.fit_seconds;
  out["study"] = study_json(report.study);
  out["n_kept_verbatim"] = report.kept_verbatim.size();
  out["kept_verbatim"] = spans_json(record.kept);
  out["n_condensed"] = report.condensed.size();
  out["condensed"] = spans_json(record.condensed);
  out["layers"] = layers_json(report);
  out["worst_heads"] = worst_heads_json(report);
  out["heads"] = std::move(heads);
  return out;
}

}  // namespace sh::server
