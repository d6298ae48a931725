// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "tools/compact_eval.h"
#include "tools/table.h"

namespace sh::tools {

namespace {

/// null for what was not measured.
Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }
Json interval(std::pair<double, double> ci) { return std::isfinite(ci.first) ? Json::array({ci.first, ci.second}) : Json(nullptr); }

template <typename Get>
double mean_of(const std::vector<EvalCost>& costs, Get get) {
  std::vector<double> values;
  for (const EvalCost& cost : costs) values.push_back(get(cost));
  return mean(values);
}
/// The first document's figure, or NaN.
double first_of(const std::vector<EvalCost>& costs, double EvalCost::* field) {
  for (const EvalCost& cost : costs)
    if (cost.*field >= 0) return cost.*field;
  return std::numeric_limits<double>::quiet_NaN();
}

std::string formatted(const Json& row, const char* key, const char* format) {
  const Json& value = row.at(key);
  return value.is_null() ? "" : fmt::format(fmt::runtime(format), value.get<double>());
}

}  // namespace

Result<MethodSpec> parse_method_spec(const std::string& text) {
  MethodSpec spec{.label = text};
  size_t at = text.find(':');
  spec.request.method = text.substr(0, at);
  SH_RETURN_IF_ERROR(compaction::find_method(spec.request.method));
  while (at != std::string::npos) {
    const size_t next = text.find(':', at + 1);
    const std::string option = text.substr(at + 1, next == std::string::npos ? next : next - at - 1);
    const size_t equals = option.find('=');
    if (equals == std::string::npos)
      return Error{ErrorKind::invalid_argument, fmt::format("method '{}': expected name:option=value, got '{}'", text, option)};
    SH_RETURN_IF_ERROR(engine::set_option(spec.request, option.substr(0, equals), option.substr(equals + 1)));
    spec.options[option.substr(0, equals)] = option.substr(equals + 1);
    at = next;
  }
  return spec;
}

Json row_json(const EvalCell& cell, uint64_t seed) {
  std::vector<double> kls;
  double n_same_top1 = 0, n_confident = 0, n_flips = 0, delta_nll = 0, n_right = 0, n_asked = 0, n_full_right = 0, n_right_of_full = 0, n_same = 0;
  double n_study_asked = 0, n_study_asked_right = 0;
  std::map<std::string, Cluster> recall, kl;  // by document
  std::vector<TokenComparison> tokens;
  for (const EvalItem& item : cell.items) {
    for (const TokenComparison& t : item.tokens) {
      kls.push_back(t.kl);
      n_same_top1 += t.is_same_top1;
      n_confident += t.is_confident;
      n_flips += t.is_confident && !t.is_same_top1;
      delta_nll += t.nll_compact - t.nll_full;
      kl[item.document].sum += t.kl;
      kl[item.document].n += 1;
      tokens.push_back(t);
    }
    if (!item.has_answer) continue;
    n_asked += 1;
    n_right += item.is_right;
    n_same += item.is_same_as_full;
    n_full_right += item.is_right_with_full;
    n_right_of_full += item.is_right && item.is_right_with_full;
    n_study_asked += item.was_asked_in_study;
    n_study_asked_right += item.was_asked_in_study && item.is_right;
    recall[item.document].sum += item.is_right;
    recall[item.document].n += 1;
  }
  const auto clusters = [](const std::map<std::string, Cluster>& by_document) {
    std::vector<Cluster> list;
    for (const auto& [document, cluster] : by_document) list.push_back(cluster);
    return list;
  };
  const auto n_tokens = static_cast<double>(kls.size());
  const double before = mean_of(cell.costs, [](const EvalCost& c) { return c.bytes_before; });
  const double after = mean_of(cell.costs, [](const EvalCost& c) { return c.bytes_after; });
  const bool is_method = cell.method != "full" && cell.method != "none";
  const auto seconds = [&](double EvalCost::* field) { return is_method ? number(mean_of(cell.costs, [&](const EvalCost& c) { return c.*field; })) : Json(nullptr); };
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  Json row = {
      {"context", cell.context},
      {"n_tokens", number(mean_of(cell.costs, [](const EvalCost& c) { return c.n_tokens; }))},
      {"method", cell.method},
      {"options", Json(cell.options)},
      {"ratio", cell.method == "none" ? Json(nullptr) : number(cell.ratio)},
      {"real_ratio", number(after > 0 ? before / after : kNaN)},
      {"bytes_before", number(before)},
      {"bytes_after", number(after)},
      {"n_docs", cell.costs.size()},
      {"n_refused", cell.refusals.size()},
      {"recall", number(n_asked > 0 ? n_right / n_asked : kNaN)},
      {"recall_n", static_cast<int64_t>(n_asked)},
      {"recall_ci", interval(cluster_bootstrap(clusters(recall), seed))},
      {"recall_of_full", number(n_full_right > 0 ? n_right_of_full / n_full_right : kNaN)},
      {"same_as_full", number(n_asked > 0 ? n_same / n_asked : kNaN)},
      {"asked_in_study", is_method && n_asked > 0 ? Json(static_cast<int64_t>(n_study_asked)) : Json(nullptr)},
      {"recall_not_asked_in_study", number(n_asked > n_study_asked ? (n_right - n_study_asked_right) / (n_asked - n_study_asked) : kNaN)},
      {"kl_mean", number(mean(kls))},
      {"kl_median", number(quantile(kls, 0.5))},
      {"kl_p95", number(quantile(kls, 0.95))},
      {"kl_p99", number(quantile(kls, 0.99))},
      {"kl_ci", interval(cluster_bootstrap(clusters(kl), seed + 1))},
      {"top1", number(n_tokens > 0 ? n_same_top1 / n_tokens : kNaN)},
      {"confident_flips", number(n_confident > 0 ? n_flips / n_confident : kNaN)},
      {"delta_nll", number(n_tokens > 0 ? delta_nll / n_tokens : kNaN)},
      {"recovery", number(context_recovery(tokens, false))},
      {"recovery_top_decile", number(context_recovery(tokens, true))},
      {"seconds",
       {{"prefill", number(mean_of(cell.costs, [](const EvalCost& c) { return c.seconds_prefill; }))},
        {"capture", seconds(&EvalCost::seconds_capture)},
        {"select", seconds(&EvalCost::seconds_select)},
        {"fit", seconds(&EvalCost::seconds_fit)},
        {"total", seconds(&EvalCost::seconds_total)}}},
      {"decode_tps_before", number(first_of(cell.costs, &EvalCost::decode_tps_before))},
      {"decode_tps_after", number(first_of(cell.costs, &EvalCost::decode_tps_after))},
      {"rss_before", number(first_of(cell.costs, &EvalCost::rss_before))},
      {"rss_after", number(first_of(cell.costs, &EvalCost::rss_after))},
      {"heldout_plain", seconds(&EvalCost::heldout_plain)},
      {"heldout_fitted", seconds(&EvalCost::heldout_fitted)},
      {"fallback_heads", seconds(&EvalCost::fallback_heads)},
      {"verdict", nullptr},
  };
  return row;
}

Json item_json(const EvalItem& item) {
  std::vector<double> kls;
  for (const TokenComparison& t : item.tokens) kls.push_back(t.kl);
  return {{"context", item.context},
          {"doc", item.document},
          {"item", item.index},
          {"kind", item.kind},
          {"depth", item.depth >= 0 ? Json(item.depth) : Json(nullptr)},
          {"method", item.method},
          {"ratio", item.method == "none" ? Json(nullptr) : number(item.ratio)},
          {"expected", item.has_answer ? Json(item.expected) : Json(nullptr)},
          {"answer", item.has_answer ? Json(item.answer) : Json(nullptr)},
          {"right", item.has_answer ? Json(item.is_right) : Json(nullptr)},
          {"asked_in_study", item.has_answer ? Json(item.was_asked_in_study) : Json(nullptr)},
          {"nll", number(item.nll)},
          {"kl", number(mean(kls))}};
}

std::string eval_table(const std::vector<Json>& rows) {
  Table table({"context", "method", "ratio", "real", "KiB", "recall", "of full", "KL mean", "KL p99", "top-1", "dNLL", "recovery", "seconds", "tok/s before", "after", "RSS MiB before", "after"});
  for (const Json& row : rows) {
    const auto cell = [&](const char* key, const char* format) { return formatted(row, key, format); };
    const auto scaled = [&](const char* key, double scale, const char* format) {
      return row.at(key).is_null() ? std::string() : fmt::format(fmt::runtime(format), row.at(key).get<double>() * scale);
    };
    const Json& total = row.at("seconds").at("total");
    table.add({row.at("context").get<std::string>(), row.at("method").get<std::string>(), cell("ratio", "{:g}x"), cell("real_ratio", "{:.2f}x"),
               scaled("bytes_after", 1.0 / 1024, "{:.0f}"), scaled("recall", 100, "{:.1f} %"), scaled("recall_of_full", 100, "{:.1f} %"), cell("kl_mean", "{:.2e}"), cell("kl_p99", "{:.2e}"),
               scaled("top1", 100, "{:.1f} %"), cell("delta_nll", "{:+.4f}"), cell("recovery", "{:.3f}"), total.is_null() ? "" : fmt::format("{:.2f}", total.get<double>()),
               cell("decode_tps_before", "{:.0f}"), cell("decode_tps_after", "{:.0f}"), scaled("rss_before", 1.0 / (1 << 20), "{:.1f}"),
               scaled("rss_after", 1.0 / (1 << 20), "{:.1f}")});
  }
  return table.markdown();
}

}  // namespace sh::tools
