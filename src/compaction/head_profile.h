// SPDX-License-Identifier: MIT
// Shares of a budget that the heads of one model want, learned from documents and kept in a file.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace sh::compaction {

/// A KV head; layers are numbered over all layers of the model.
struct HeadId {
  int32_t layer = 0, head = 0;
  bool operator==(const HeadId&) const = default;
};
/// "L3H0", as heads are named in files and reports.
std::string name_of(HeadId id);

struct HeadProfile {
  std::string model;  // what the caller tells models of different shapes apart by
  std::string method;
  double ratio = 1;  // that it was measured at
  int64_t n_documents = 1;
  std::vector<std::vector<float>> shares;  // [layer][head], sum 1; a layer that is never compacted has no heads
};

/// {"format": "shorthand-head-profile", "version": 1, "model": …, "method": …, "ratio": …, "documents": …,
///  "shares": {"L0H0": 0.01, …}}. Reading it back gives the same numbers, bit for bit.
std::string format_head_profile(const HeadProfile& profile);

/// Reads what format_head_profile wrote, or somebody's hand.
/// Errors: invalid_argument naming `where` (the file), the field, what is expected and what was found; a layer
/// that
///         lacks one of its heads; shares whose sum is off 1 by more than a thousandth.
Result<HeadProfile> parse_head_profile(std::string_view text, std::string_view where);

/// Shares of what a plan gave to each head, for a profile; all equal if it gave nothing.
/// Shapes: heads and kept_rows have the same length; result [layer][head], 0 for heads in between.
std::vector<std::vector<float>> shares_of(std::span<const HeadId> heads, std::span<const int64_t> kept_rows);

/// The mean of the shares (and ratios), each profile as much as it has documents.
/// Errors: invalid_argument when there is none, or they differ in model, method or heads.
Result<HeadProfile> average(std::span<const HeadProfile> profiles);

/// The share of each of these heads, in their order, as plan_budget wants them.
/// Errors: invalid_argument when the profile is of another model, lacks a head or has one that is not in the list.
Result<std::vector<float>> shares_for(const HeadProfile& profile, std::string_view model,
                                      std::span<const HeadId> heads);

}  // namespace sh::compaction
