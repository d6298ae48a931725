// SPDX-License-Identifier: MIT
// Reading the object that compact-eval writes, for its page: a missing key or another type is a figure that was
// not measured.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"

namespace sh::tools::eval_page {

/// The value at "seconds.total", or nullptr.
const Json* find(const Json& object, std::string_view path);
/// A number; NaN when there is none.
double figure(const Json& object, std::string_view path);
inline bool has_figure(const Json& object, std::string_view path) {
  return std::isfinite(figure(object, path));
}
/// [low, high]; NaN when there is none.
std::pair<double, double> interval(const Json& object, std::string_view path);
/// A string as it is, other values as JSON, null as "".
std::string words(const Json& object, std::string_view path);
/// The objects of a list: of "rows", "heads", ...
std::vector<const Json*> objects(const Json& result, const char* key);

/// "8x"; "" for NaN.
std::string compression(double ratio);
/// full and none: they bound the others and belong to every ratio.
bool is_anchor(const std::string& method);
/// The whole cache in fewer bits a number: "q8_0", "kv:q4_0".
bool is_quantised_whole(const std::string& method);

/// What a reader can choose; elements of the page carry indices into these lists.
struct Choices {
  std::vector<std::string> contexts, methods;  // in the order of the rows; methods without full and none
  std::vector<double> ratios;                  // ascending

  size_t context(const std::string& name) const { return index(contexts, name); }
  size_t method(const std::string& name) const { return index(methods, name); }
  size_t ratio(double value) const { return index(ratios, value); }
  /// Full and none come after the methods.
  size_t style(const std::string& name) const {
    return is_anchor(name) ? methods.size() + (name == "none") : method(name);
  }

 private:
  template <typename T>
  static size_t index(const std::vector<T>& all, const T& one) {
    return static_cast<size_t>(std::find(all.begin(), all.end(), one) - all.begin());
  }
};
Choices choices_of(const Json& result);

}  // namespace sh::tools::eval_page
