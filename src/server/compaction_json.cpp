// SPDX-License-Identifier: MIT
#include "server/compaction_json.h"

#include <numeric>

namespace sh::server {

double mean_kept_rows(const engine::CompactionReport& report) {
  if (report.head_rows.empty()) return 0;
  const int64_t n = std::accumulate(report.head_rows.begin(), report.head_rows.end(), int64_t{0});
  return static_cast<double>(n) / static_cast<double>(report.head_rows.size());
}

Json report_json(const engine::CompactionReport& report, const kv::KvLayout& layout) {
  Json heads = Json::array();
  size_t i = 0;
  for (size_t layer = 0; layer < layout.layers.size(); ++layer)
    for (int32_t head = 0; head < layout.layers[layer].n_heads && i < report.heads.size(); ++head, ++i) {
      const compaction::FitReport& fit = report.heads[i];
      heads.push_back({{"layer", layer},
                       {"head", head},
                       {"rows", i < report.head_rows.size() ? Json(report.head_rows[i]) : Json()},
                       {"n_queries", fit.n_fit_queries + fit.n_heldout_queries},
                       {"heldout_error", fit.heldout_fitted},
                       {"heldout_error_unfitted", fit.heldout_plain},
                       {"heldout_error_worst", fit.heldout_fitted_worst},
                       {"is_fit_accepted", fit.is_fit_accepted}});
    }
  return Json{{"method", report.method},
              {"queries", std::string(compaction::name_of(report.queries))},
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
