// SPDX-License-Identifier: MIT
// What takes several cells of one context: normalised recall, paired differences, verdicts.
#include <algorithm>
#include <cmath>

#include "engine/compaction_report.h"
#include "tools/compact_eval.h"
#include "tools/eval_json.h"

namespace sh::tools {

namespace {

// The calibrated verdict: what share of the context's help must be left, and what may never happen.
constexpr double kGoodShare = 0.95, kGoodShareLow = 0.9, kGistShare = 0.7, kMaxConfidentFlips = 0.05;
/// An instruction counts as lost when less than half of the replies that obeyed it still do.
constexpr double kInstructionKept = 0.5;

struct Row {
  const EvalCell* cell;
  Json* json;
};

using ItemKey = std::pair<std::string, int64_t>;
std::map<ItemKey, const EvalItem*> items_by_key(const EvalCell& cell) {
  std::map<ItemKey, const EvalItem*> out;
  for (const EvalItem& item : cell.items) out[{item.document, item.index}] = &item;
  return out;
}

double kl_sum(const EvalItem& item) {
  double sum = 0;
  for (const TokenComparison& t : item.tokens) sum += t.kl;
  return sum;
}

/// All rows of one context.
class ContextRows {
 public:
  ContextRows(std::vector<Row> rows, const engine::VerdictScale& replay_scale, uint64_t seed)
      : rows_(std::move(rows)), scale_(replay_scale), seed_(seed) {
    const Row *q8 = find("kv:q8_0"), *q4 = find("kv:q4_0");
    if (q8 != nullptr && q4 != nullptr)
      scale_ = {number_at(*q8->json, "kl_mean"), number_at(*q4->json, "kl_mean")};
  }

  void compare(const std::string& reference) {
    for (const Row& row : rows_) {
      add_normalised(row);
      if (row.cell->is_anchor()) continue;
      const Row* other = find(reference, row.cell->ratio);
      if (other != nullptr && other->cell != row.cell) add_excess(row, *other);
      (*row.json)["verdict"] = verdict(row);
    }
  }

 private:
  const Row* find(const std::string& method, std::optional<double> ratio = {}) const {
    for (const Row& row : rows_)
      if (row.cell->method == method && (!ratio || row.cell->ratio == *ratio)) return &row;
    return nullptr;
  }

  /// (x - none) / (full - none) over the documents that the cell measured.
  void add_normalised(const Row& row) const {
    const Row *full = find("full"), *none = find("none");
    if (full == nullptr || none == nullptr) return;
    const auto full_items = items_by_key(*full->cell), none_items = items_by_key(*none->cell);
    ClusterMap clusters;
    double kept = 0, whole = 0;
    for (const EvalItem& item : row.cell->items) {
      const ItemKey key = {item.document, item.index};
      if (!item.has_answer || !full_items.contains(key) || !none_items.contains(key)) continue;
      const double base = none_items.at(key)->is_right;
      clusters.add(item.document, item.is_right - base, full_items.at(key)->is_right - base);
      kept += item.is_right - base;
      whole += full_items.at(key)->is_right - base;
    }
    if (whole <= 0) return;
    (*row.json)["recall_normalised"] = kept / whole;
    (*row.json)["recall_normalised_ci"] = json_interval(cluster_bootstrap(clusters.list(), seed_ + 3));
  }

  /// Differences to another method on the items that both measured.
  void add_excess(const Row& row, const Row& other) const {
    const auto other_items = items_by_key(*other.cell);
    ClusterMap right, kl;
    double n = 0, difference = 0, n_tokens = 0, kl_difference = 0;
    int64_t only_this = 0, only_other = 0;
    for (const EvalItem& item : row.cell->items) {
      const auto at = other_items.find({item.document, item.index});
      if (at == other_items.end()) continue;
      const EvalItem& twin = *at->second;
      const auto n_item_tokens = static_cast<double>(item.tokens.size());
      kl.add(item.document, kl_sum(item) - kl_sum(twin), n_item_tokens);
      kl_difference += kl_sum(item) - kl_sum(twin);
      n_tokens += n_item_tokens;
      if (!item.has_answer) continue;
      const double change = static_cast<double>(item.is_right) - static_cast<double>(twin.is_right);
      right.add(item.document, change, 1);
      difference += change;
      n += 1;
      only_this += change > 0;
      only_other += change < 0;
    }
    const auto& name = other.cell->method;
    if (n > 0)
      (*row.json)["recall_excess"] = {{"reference", name},
                                      {"difference", difference / n},
                                      {"ci", json_interval(cluster_bootstrap(right.list(), seed_ + 4))},
                                      {"only_this", only_this},
                                      {"only_reference", only_other},
                                      {"p", mcnemar_p(only_this, only_other)}};
    if (n_tokens > 0)
      (*row.json)["kl_excess"] = {{"reference", name},
                                  {"difference", json_number(kl_difference / n_tokens)},
                                  {"ci", json_interval(cluster_bootstrap(kl.list(), seed_ + 5))}};
  }

  bool has_lost_instruction(const Row& row) const {
    double n = 0, n_kept = 0;
    for (const EvalItem& item : row.cell->items) {
      if (!item.obeys_with_full.value_or(false)) continue;
      n += 1;
      n_kept += item.obeys.value_or(false);
    }
    return n > 0 && n_kept < kInstructionKept * n;
  }

  Json verdict(const Row& row) const {
    using engine::Verdict;
    if (row.cell->items.empty() || std::isnan(scale_.kl_q8) || std::isnan(scale_.kl_q4)) return nullptr;
    const double kl = number_at(*row.json, "kl_mean"), flips = number_at(*row.json, "confident_flips");
    // Where nothing was asked, the likelihood of the text stands for the answers, and no interval is asked for.
    const Json& ci = row.json->at("recall_normalised_ci");
    const bool has_answers = !row.json->at("recall_normalised").is_null();
    const double share = number_at(*row.json, has_answers ? "recall_normalised" : "recovery");
    const bool keeps_answers = share >= kGoodShare && !ci.is_null() && ci[0].get<double>() >= kGoodShareLow;
    Verdict verdict = Verdict::reject;
    if (std::isnan(kl) || flips > kMaxConfidentFlips || has_lost_instruction(row))
      verdict = Verdict::reject;
    else if (kl <= scale_.kl_q8)
      verdict = Verdict::transparent;
    else if (kl <= scale_.kl_q4 && (keeps_answers || !has_answers))
      verdict = Verdict::good;
    else if (share >= kGistShare)
      verdict = Verdict::gist;
    return engine::name_of(verdict);
  }

  std::vector<Row> rows_;
  engine::VerdictScale scale_;
  uint64_t seed_;
};

}  // namespace

void compare_rows(const EvalRun& run, const std::string& reference, uint64_t seed, std::vector<Json>& rows) {
  SH_CHECK(run.cells.size() == rows.size(), "one row a cell");
  std::map<std::string, std::vector<Row>> by_context;
  for (size_t i = 0; i < rows.size(); ++i) by_context[run.cells[i].context].push_back({&run.cells[i], &rows[i]});
  for (auto& [context, group] : by_context) ContextRows(std::move(group), run.scale, seed).compare(reference);
}

}  // namespace sh::tools
