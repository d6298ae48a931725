// SPDX-License-Identifier: MIT
// Inside of compact-eval's report: figures as JSON, and sums by document.
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tools/eval_metrics.h"

namespace sh::tools {

/// null for what was not measured.
inline Json json_number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}
inline Json json_interval(std::pair<double, double> ci) {
  return std::isfinite(ci.first) && std::isfinite(ci.second) ? Json::array({ci.first, ci.second}) : Json(nullptr);
}
/// The number under a key, or kUnmeasured.
inline double number_at(const Json& row, const char* key) {
  return row.at(key).is_null() ? kUnmeasured : row.at(key).get<double>();
}

/// Sums of one thing by document, for intervals over documents.
class ClusterMap {
 public:
  void add(const std::string& document, double sum, double n) {
    Cluster& cluster = by_document_[document];
    cluster.sum += sum;
    cluster.n += n;
  }
  std::vector<Cluster> list() const {
    std::vector<Cluster> out;
    for (const auto& [document, cluster] : by_document_) out.push_back(cluster);
    return out;
  }

 private:
  std::map<std::string, Cluster> by_document_;
};

}  // namespace sh::tools
