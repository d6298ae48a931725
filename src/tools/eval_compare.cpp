// SPDX-License-Identifier: MIT
// What takes several cells of one context: normalised recall, paired differences, verdicts.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

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

/// Mean KL a token of a cell over the items that another one measured.
double kl_on_items_of(const EvalCell& cell, const EvalCell& other) {
  const auto wanted = items_by_key(other);
  std::vector<double> kls;
  for (const EvalItem& item : cell.items)
    if (wanted.contains({item.document, item.index}))
      for (const TokenComparison& t : item.tokens) kls.push_back(t.kl);
  return mean(kls);
}

/// All rows of one context.
class ContextRows {
 public:
  ContextRows(std::vector<Row> rows, const std::string& no_scale, uint64_t seed)
      : rows_(std::move(rows)), no_scale_(no_scale), seed_(seed) {}

  /// Gives the reasons why rows that were measured have no verdict.
  std::set<std::string> compare(const std::string& reference) {
    for (const Row& row : rows_) {
      add_normalised(row);
      if (row.cell->is_anchor()) continue;
      const Row* other = find(reference, row.cell->ratio);
      if (other != nullptr && other->cell != row.cell) add_excess(row, *other);
      (*row.json)["verdict"] = verdict(row);
    }
    return std::move(reasons_);
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

  /// Why the row's items can tell nothing about a cache; "" when they can.
  std::string why_untested(const Row& row) const {
    const bool has_questions = row.json->at("recall_n").get<int64_t>() > 0;
    if (!row.json->at(has_questions ? "recall_normalised" : "recovery").is_null()) return "";
    if (!has_questions)
      return "the contexts do not make their continuations likelier, so that a cache without them would do as "
             "well: "
             "take text that the model does not know, or longer contexts";
    const Row* full = find("full");
    if (full == nullptr) return "the full cache was not measured";
    const auto is_right = [](const EvalItem& item) { return item.is_right; };
    const auto is_unparsed = [](const EvalItem& item) { return item.has_answer && !item.is_parsed; };
    const std::vector<EvalItem>& items = full->cell->items;
    const auto n_right = std::count_if(items.begin(), items.end(), is_right);
    if (n_right == 0 && std::all_of(items.begin(), items.end(), is_unparsed))
      return fmt::format(
          "in none of the {} answers of the full cache could a letter be read: give --qa-tokens more "
          "than the thoughts take, or take a model that answers as it is asked",
          items.size());
    if (n_right == 0)
      return fmt::format(
          "the full cache answers none of the {} questions rightly, so that none can be lost: take "
          "questions that this model answers, or a larger model",
          items.size());
    return "no more answers are right with the context than without it: take documents that the model does not "
           "know";
  }

  Json verdict(const Row& row) {
    using engine::Verdict;
    if (row.cell->items.empty()) return nullptr;
    const std::string why_not = no_scale_.empty() ? why_untested(row) : no_scale_;
    const Row *fine = find(kScaleFine), *coarse = find(kScaleCoarse);
    if (!why_not.empty() || fine == nullptr || coarse == nullptr) {
      reasons_.insert(fmt::format("{}: no verdicts: {}", row.cell->context,
                                  why_not.empty() ? "the caches in q8_0 and q4_0 were not measured" : why_not));
      return nullptr;
    }
    // All three over the same items in the same order, so that q8_0 is no worse than itself.
    const double kl = number_at(*row.json, "kl_mean"), flips = number_at(*row.json, "confident_flips");
    const double kl_fine = kl_on_items_of(*fine->cell, *row.cell);
    const double kl_coarse = kl_on_items_of(*coarse->cell, *row.cell);
    // Where nothing was asked, the likelihood of the text stands for the answers, and no interval is asked for.
    const Json& ci = row.json->at("recall_normalised_ci");
    const bool has_answers = !row.json->at("recall_normalised").is_null();
    const double share = number_at(*row.json, has_answers ? "recall_normalised" : "recovery");
    const bool keeps_answers = share >= kGoodShare && !ci.is_null() && ci[0].get<double>() >= kGoodShareLow;
    Verdict verdict = Verdict::reject;
    if (std::isnan(kl) || flips > kMaxConfidentFlips || has_lost_instruction(row))
      verdict = Verdict::reject;
    else if (kl <= kl_fine)
      verdict = Verdict::transparent;
    else if (kl <= kl_coarse && (keeps_answers || !has_answers))
      verdict = Verdict::good;
    else if (share >= kGistShare)
      verdict = Verdict::gist;
    return engine::name_of(verdict);
  }

  std::vector<Row> rows_;
  const std::string& no_scale_;
  uint64_t seed_;
  std::set<std::string> reasons_;
};

}  // namespace

std::vector<std::string> compare_rows(const EvalRun& run, const std::string& reference, uint64_t seed,
                                      std::vector<Json>& rows) {
  SH_CHECK(run.cells.size() == rows.size(), "one row a cell");
  std::map<std::string, std::vector<Row>> by_context;
  for (size_t i = 0; i < rows.size(); ++i) by_context[run.cells[i].context].push_back({&run.cells[i], &rows[i]});
  std::vector<std::string> reasons;
  for (auto& [context, group] : by_context)
    for (const std::string& reason : ContextRows(std::move(group), run.no_scale, seed).compare(reference))
      reasons.push_back(reason);
  return reasons;
}

}  // namespace sh::tools
