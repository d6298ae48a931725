// SPDX-License-Identifier: MIT
#include "server/compaction_json.h"

namespace sh::server {

double mean_kept_rows(const engine::CompactionReport& report) {
  if (report.heads.empty()) return 0;
  double n = 0;
  for (const auto& head : report.heads) n += static_cast<double>(head.n_kept);
  return n / static_cast<double>(report.heads.size());
}

Json report_json(const engine::CompactionReport& report) {
  Json heads = Json::array();
  for (const auto& head : report.heads)
    heads.push_back({{"layer", head.layer},
                     {"head", head.head},
                     {"rows", head.n_kept},
                     {"n_queries", head.fit.n_fit_queries + head.fit.n_heldout_queries},
                     {"heldout_error", head.fit.heldout_fitted},
                     {"heldout_error_unfitted", head.fit.heldout_plain},
                     {"heldout_error_worst", head.fit.heldout_fitted_worst},
                     {"is_fit_accepted", head.fit.is_fit_accepted}});
  return Json{{"method", report.method},
              {"queries", compaction::name_of(report.queries)},
              {"n_logical", report.n_logical},
              {"n_region", report.n_region},
              {"n_physical_before", report.rows_before},
              {"n_physical", report.rows_after},
              {"bytes_before", report.bytes_before},
              {"bytes_after", report.bytes_after},
              {"region_ratio", report.region_ratio},
              {"real_ratio", report.real_ratio},
              {"capture_seconds", report.capture_seconds},
              {"select_seconds", report.select_seconds},
              {"fit_seconds", report.fit_seconds},
              {"seconds", report.total_seconds},
              {"heldout_error", report.heldout_fitted},
              {"heldout_error_unfitted", report.heldout_plain},
              {"fallback_heads", report.fallback_heads},
              {"n_queries", report.n_queries},
              {"heads", std::move(heads)}};
}

}  // namespace sh::server
