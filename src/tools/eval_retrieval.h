// SPDX-License-Identifier: MIT
// Passages of a text ranked for a question. Strings only.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace sh::tools {

/// Stretches of whole sentences or lines, n_words words each at least but the last one; in order they are the
/// text.
std::vector<std::string_view> split_passages(std::string_view text, int64_t n_words);

/// BM25 of each passage for a query, with k1 = 1.2 and b = 0.75. Words are runs of letters, digits and bytes above
/// ASCII, case aside.
/// Source:  Robertson, Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; the logarithm of
///          1 + (N - n + 0.5) / (n + 0.5), which is never negative.
std::vector<double> bm25(std::span<const std::string_view> passages, std::string_view query);

}  // namespace sh::tools
