// SPDX-License-Identifier: MIT
// Cells as JSON: what one cell tells by itself.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/compact_eval.h"
#include "tools/eval_json.h"

namespace sh::tools {

namespace {

/// Right answers of a group of items.
struct Count {
  double n = 0, n_right = 0;
  void add(bool is_right) {
    n += 1;
    n_right += is_right;
  }
  double share() const { return n > 0 ? n_right / n : kUnmeasured; }
};

double mean_of(const std::vector<EvalCost>& costs, double EvalCost::*field) {
  std::vector<double> values;
  for (const EvalCost& cost : costs) values.push_back(cost.*field);
  return mean(values);
}
/// Of the document that it was measured on.
double first_of(const std::vector<EvalCost>& costs, double EvalCost::*field) {
  for (const EvalCost& cost : costs)
    if (std::isfinite(cost.*field)) return cost.*field;
  return kUnmeasured;
}

/// Means over those documents where something was measured.
double known_mean_of(const std::vector<EvalCost>& costs, double EvalCost::*field) {
  std::vector<double> values;
  for (const EvalCost& cost : costs)
    if (std::isfinite(cost.*field)) values.push_back(cost.*field);
  return mean(values);
}

void add_sizes(const EvalCell& cell, Json& row) {
  const double before = mean_of(cell.costs, &EvalCost::bytes_before);
  const double after = mean_of(cell.costs, &EvalCost::bytes_after);
  row["real_ratio"] = json_number(after > 0 ? before / after : kUnmeasured);
  row["bytes_before"] = json_number(before);
  row["bytes_after"] = json_number(after);
}

void add_recall(const EvalCell& cell, uint64_t seed, Json& row) {
  const bool is_study = std::isfinite(known_mean_of(cell.costs, &EvalCost::study_conversations));
  Count all, of_full, same, not_asked, choices_parsed, right_of_parsed, likeliest, obeying, invented;
  std::vector<double> nlls, ranks;
  int64_t n_asked_in_study = 0;
  ClusterMap clusters;
  Json lost = Json::array();
  for (const EvalItem& item : cell.items) {
    if (!item.has_answer) continue;
    all.add(item.is_right);
    same.add(item.is_same_as_full);
    clusters.add(item.document, item.is_right, 1);
    if (item.is_right_with_full) of_full.add(item.is_right);
    if (item.is_right_with_full && !item.is_right) lost.push_back(fmt::format("{}#{}", item.document, item.index));
    if (item.was_asked_in_study)
      ++n_asked_in_study;
    else
      not_asked.add(item.is_right);
    if (item.is_choice) choices_parsed.add(item.is_parsed);
    if (item.is_choice && item.is_parsed) right_of_parsed.add(item.is_right);
    if (item.is_likeliest) likeliest.add(*item.is_likeliest);
    if (item.obeys) obeying.add(*item.obeys);
    if (item.kind == "absent") invented.add(!item.is_right);
    nlls.push_back(item.nll);
    if (item.rank) ranks.push_back(static_cast<double>(*item.rank));
  }
  row["recall"] = json_number(all.share());
  row["recall_n"] = static_cast<int64_t>(all.n);
  row["recall_ci"] = json_interval(cluster_bootstrap(clusters.list(), seed));
  row["recall_of_full"] = json_number(of_full.share());
  row["recall_normalised"] = nullptr;
  row["recall_normalised_ci"] = nullptr;
  row["recall_excess"] = nullptr;
  row["same_as_full"] = json_number(same.share());
  row["lost"] = all.n > 0 ? lost : Json(nullptr);
  row["asked_in_study"] = is_study && all.n > 0 ? Json(n_asked_in_study) : Json(nullptr);
  row["recall_not_asked_in_study"] = json_number(is_study ? not_asked.share() : kUnmeasured);
  row["unparsed"] = json_number(1 - choices_parsed.share());
  row["recall_of_parsed"] = json_number(right_of_parsed.share());
  row["recall_by_likelihood"] = json_number(likeliest.share());
  row["instruction_obeyed"] = json_number(obeying.share());
  row["hallucination"] = json_number(invented.share());
  row["answer_nll"] = json_number(mean(nlls));
  row["answer_rank"] = json_number(quantile(ranks, 0.5));
}

double overlap_sum(const EvalItem& item, double LogitOverlap::*field) {
  double sum = 0;
  for (const LogitOverlap& overlap : item.overlaps) sum += overlap.*field;
  return sum;
}
Json overlap_mean(const EvalCell& cell, double LogitOverlap::*field) {
  double sum = 0, n = 0;
  for (const EvalItem& item : cell.items) {
    sum += overlap_sum(item, field);
    n += static_cast<double>(item.overlaps.size());
  }
  return json_number(sum / n);
}

void add_logits(const EvalCell& cell, uint64_t seed, Json& row) {
  std::vector<double> kls;
  std::vector<TokenComparison> tokens;
  Count top1, flips;
  double delta_nll = 0;
  ClusterMap kl, recovery;
  for (const EvalItem& item : cell.items)
    for (const TokenComparison& t : item.tokens) {
      tokens.push_back(t);
      kls.push_back(t.kl);
      kl.add(item.document, t.kl, 1);
      top1.add(t.is_same_top1);
      if (t.is_confident) flips.add(!t.is_same_top1);
      delta_nll += t.nll_compact - t.nll_full;
      if (!std::isnan(t.nll_none))
        recovery.add(item.document, t.nll_none - t.nll_compact, t.nll_none - t.nll_full);
    }
  row["kl_mean"] = json_number(mean(kls));
  row["kl_median"] = json_number(quantile(kls, 0.5));
  row["kl_p95"] = json_number(quantile(kls, 0.95));
  row["kl_p99"] = json_number(quantile(kls, 0.99));
  row["kl_max"] = json_number(quantile(kls, 1));
  row["kl_ci"] = json_interval(cluster_bootstrap(kl.list(), seed + 1));
  row["kl_excess"] = nullptr;
  row["top1"] = json_number(top1.share());
  row["top5"] = overlap_mean(cell, &LogitOverlap::top5);
  row["top10"] = overlap_mean(cell, &LogitOverlap::top10);
  row["logit_cosine"] = overlap_mean(cell, &LogitOverlap::cosine);
  row["confident_flips"] = json_number(flips.share());
  row["delta_nll"] = json_number(tokens.empty() ? kUnmeasured : delta_nll / static_cast<double>(tokens.size()));
  const double all = context_recovery(tokens, false);
  row["recovery"] = json_number(all);
  row["recovery_ci"] =
      json_interval(std::isnan(all) ? std::pair(all, all) : cluster_bootstrap(recovery.list(), seed + 2));
  row["recovery_top_decile"] = json_number(context_recovery(tokens, true));
}

/// Tokens to be decoded until the time that they save has made up for the compaction, on the document that both
/// were measured on. Never where nothing is saved.
double break_even(const std::vector<EvalCost>& costs) {
  for (const EvalCost& cost : costs) {
    if (!std::isfinite(cost.decode_tps_after)) continue;
    const double saved = 1 / cost.decode_tps_before - 1 / cost.decode_tps_after;  // seconds a token
    return saved > 0 ? cost.seconds_total / saved : kUnmeasured;
  }
  return kUnmeasured;
}

void add_costs(const EvalCell& cell, Json& row) {
  const auto known = [&](double EvalCost::*field) { return json_number(known_mean_of(cell.costs, field)); };
  std::vector<double> totals;
  for (const EvalCost& cost : cell.costs)
    if (std::isfinite(cost.seconds_total)) totals.push_back(cost.seconds_total);
  row["seconds"] = {
      {"prefill", known(&EvalCost::seconds_prefill)},    {"capture", known(&EvalCost::seconds_capture)},
      {"select", known(&EvalCost::seconds_select)},      {"fit", known(&EvalCost::seconds_fit)},
      {"total", known(&EvalCost::seconds_total)},        {"total_p50", json_number(quantile(totals, 0.5))},
      {"total_p95", json_number(quantile(totals, 0.95))}};
  row["study_conversations"] = known(&EvalCost::study_conversations);
  row["study_tokens"] = known(&EvalCost::study_tokens);
  for (const auto& [key, field] :
       {std::pair("decode_tps_before", &EvalCost::decode_tps_before),
        std::pair("decode_tps_after", &EvalCost::decode_tps_after), std::pair("rss_before", &EvalCost::rss_before),
        std::pair("rss_after", &EvalCost::rss_after), std::pair("peak_extra_bytes", &EvalCost::peak_extra)})
    row[key] = json_number(first_of(cell.costs, field));
  row["break_even_tokens"] = json_number(break_even(cell.costs));
  row["heldout_plain"] = known(&EvalCost::heldout_plain);
  row["heldout_fitted"] = known(&EvalCost::heldout_fitted);
  row["heldout_median"] = known(&EvalCost::heldout_median);
  row["log_mass"] = known(&EvalCost::log_mass);
  row["log_mass_plain"] = known(&EvalCost::log_mass_plain);
  row["log_mass_mean"] = known(&EvalCost::mean_log_mass);
  row["worse_heads"] = known(&EvalCost::worse_heads);
  row["fallback_heads"] = known(&EvalCost::fallback_heads);
  row["check_kl"] = known(&EvalCost::check_kl);
}

Json ratio_json(const std::string& method, double ratio) {
  return method == "none" || ratio == 0 ? Json(nullptr) : json_number(ratio);
}

/// The cell's names, which every entry of a breakdown begins with.
Json names_json(const EvalCell& cell) {
  return {{"context", cell.context}, {"method", cell.method}, {"ratio", ratio_json(cell.method, cell.ratio)}};
}

template <typename Key>
void add_counts(const EvalCell& cell, const char* name, const std::map<Key, Count>& counts, Json& into) {
  for (const auto& [key, count] : counts) {
    Json entry = names_json(cell);
    entry[name] = key;
    entry["n"] = static_cast<int64_t>(count.n);
    entry["recall"] = count.share();
    into.push_back(std::move(entry));
  }
}

void add_heads(const EvalCell& cell, Json& into) {
  for (const auto& [where, figures] : cell.heads) {
    Json entry = names_json(cell);
    entry["layer"] = where.first;
    entry["head"] = where.second;
    entry["rows"] = figures.rows / figures.n_documents;
    const bool is_measured = figures.n_measured > 0;
    entry["error"] = json_number(is_measured ? figures.error / figures.n_measured : kUnmeasured);
    entry["worst"] = json_number(is_measured ? figures.worst : kUnmeasured);
    entry["error_plain"] = json_number(is_measured ? figures.plain / figures.n_measured : kUnmeasured);
    entry["log_mass"] = json_number(is_measured ? figures.log_mass / figures.n_measured : kUnmeasured);
    into.push_back(std::move(entry));
  }
}

void add_drift(const EvalCell& cell, Json& into) {
  std::vector<std::vector<double>> kls(kDistanceRanges.size());
  for (const EvalItem& item : cell.items)
    for (size_t i = 0; i < item.tokens.size(); ++i)
      kls[distance_range(item.first_distance + static_cast<int64_t>(i))].push_back(item.tokens[i].kl);
  for (size_t range = 0; range < kls.size(); ++range) {
    if (kls[range].empty()) continue;
    Json entry = names_json(cell);
    entry["from"] = kDistanceRanges[range].first;
    entry["to"] = kDistanceRanges[range].last > 0 ? Json(kDistanceRanges[range].last) : Json(nullptr);
    entry["n"] = kls[range].size();
    entry["kl_mean"] = json_number(mean(kls[range]));
    entry["kl_median"] = json_number(quantile(kls[range], 0.5));
    into.push_back(std::move(entry));
  }
}

}  // namespace

Json row_json(const EvalCell& cell, uint64_t seed) {
  Json row = {{"context", cell.context},
              {"n_tokens", json_number(mean_of(cell.costs, &EvalCost::n_tokens))},
              {"method", cell.method},
              {"options", Json(cell.options)},
              {"ratio", ratio_json(cell.method, cell.ratio)}};
  add_sizes(cell, row);
  row["n_docs"] = cell.costs.size();
  row["n_refused"] = cell.refusals.size();
  add_recall(cell, seed, row);
  add_logits(cell, seed, row);
  add_costs(cell, row);
  row["verdict"] = nullptr;
  return row;
}

Json item_json(const EvalItem& item) {
  std::vector<double> kls;
  Count top1, flips;
  double delta_nll = 0, gain = 0, gain_kept = 0;
  for (const TokenComparison& t : item.tokens) {
    kls.push_back(t.kl);
    top1.add(t.is_same_top1);
    if (t.is_confident) flips.add(!t.is_same_top1);
    delta_nll += t.nll_compact - t.nll_full;
    if (std::isnan(t.nll_none)) continue;
    gain += t.nll_none - t.nll_full;
    gain_kept += t.nll_none - t.nll_compact;
  }
  const auto a_token = [&](double sum) { return json_number(sum / static_cast<double>(item.tokens.size())); };
  const auto overlap = [&](double LogitOverlap::*field) {
    return item.overlaps.empty() ? Json(nullptr) : a_token(overlap_sum(item, field));
  };
  const auto if_answered = [&](auto value) { return item.has_answer ? Json(value) : Json(nullptr); };
  const auto if_known = [](std::optional<bool> value) { return value ? Json(*value) : Json(nullptr); };
  return {{"context", item.context},
          {"doc", item.document},
          {"item", item.index},
          {"kind", item.kind},
          {"depth", item.depth >= 0 ? Json(item.depth) : Json(nullptr)},
          {"method", item.method},
          {"ratio", ratio_json(item.method, item.ratio)},
          {"question", if_answered(item.question)},
          {"expected", if_answered(item.expected)},
          {"answer", if_answered(item.answer)},
          {"right", if_answered(item.is_right)},
          {"right_with_full", if_answered(item.is_right_with_full)},
          {"same_as_full", if_answered(item.is_same_as_full)},
          {"asked_in_study", if_answered(item.was_asked_in_study)},
          {"parsed", item.is_choice ? Json(item.is_parsed) : Json(nullptr)},
          {"likeliest", if_known(item.is_likeliest)},
          {"obeys", if_known(item.obeys)},
          {"nll", json_number(item.nll)},
          {"rank", item.rank ? Json(*item.rank) : Json(nullptr)},
          {"n_tokens", item.tokens.size()},
          {"kl", json_number(mean(kls))},
          {"kl_max", json_number(quantile(kls, 1))},
          {"top1", json_number(top1.share())},
          {"top5", overlap(&LogitOverlap::top5)},
          {"top10", overlap(&LogitOverlap::top10)},
          {"logit_cosine", overlap(&LogitOverlap::cosine)},
          {"n_confident", static_cast<int64_t>(flips.n)},
          {"n_flips", static_cast<int64_t>(flips.n_right)},
          {"delta_nll", a_token(delta_nll)},
          {"gain", json_number(gain)},
          {"gain_kept", json_number(gain_kept)}};
}

Json breakdowns_json(const std::vector<EvalCell>& cells) {
  Json heads = Json::array(), kinds = Json::array(), depths = Json::array(), drift = Json::array();
  for (const EvalCell& cell : cells) {
    std::map<std::string, Count> by_kind;
    std::map<double, Count> by_depth;  // the middle of a tenth
    for (const EvalItem& item : cell.items) {
      if (!item.has_answer) continue;
      by_kind[item.kind].add(item.is_right);
      if (item.obeys) by_kind["instruction"].add(*item.obeys);
      if (item.depth >= 0)
        by_depth[(10 * std::min(9.0, std::floor(10 * item.depth)) + 5) / 100].add(item.is_right);
    }
    add_counts(cell, "kind", by_kind, kinds);
    add_counts(cell, "depth", by_depth, depths);
    add_heads(cell, heads);
    add_drift(cell, drift);
  }
  return {{"heads", heads}, {"kinds", kinds}, {"depths", depths}, {"drift", drift}};
}

}  // namespace sh::tools
