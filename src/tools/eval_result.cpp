// SPDX-License-Identifier: MIT
#include "tools/eval_result.h"

#include <fmt/format.h>

#include "tools/svg_plot.h"

namespace sh::tools::eval_page {

const Json* find(const Json& object, std::string_view path) {
  const Json* at = &object;
  while (!path.empty()) {
    const size_t dot = std::min(path.find('.'), path.size());
    if (!at->is_object()) return nullptr;
    const auto it = at->find(std::string(path.substr(0, dot)));
    if (it == at->end()) return nullptr;
    at = &*it;
    path.remove_prefix(std::min(dot + 1, path.size()));
  }
  return at;
}

double figure(const Json& object, std::string_view path) {
  const Json* value = find(object, path);
  return value != nullptr && value->is_number() ? value->get<double>() : kNoFigure;
}

std::pair<double, double> interval(const Json& object, std::string_view path) {
  const Json* value = find(object, path);
  if (value == nullptr || !value->is_array() || value->size() != 2 || !(*value)[0].is_number() ||
      !(*value)[1].is_number())
    return {kNoFigure, kNoFigure};
  return {(*value)[0].get<double>(), (*value)[1].get<double>()};
}

std::string words(const Json& object, std::string_view path) {
  const Json* value = find(object, path);
  if (value == nullptr || value->is_null()) return "";
  return value->is_string() ? value->get<std::string>() : dump_json(*value);
}

std::vector<const Json*> objects(const Json& result, const char* key) {
  std::vector<const Json*> out;
  if (const Json* list = find(result, key); list != nullptr && list->is_array())
    for (const Json& item : *list)
      if (item.is_object()) out.push_back(&item);
  return out;
}

bool is_anchor(const std::string& method) {
  return method == "full" || method == "none";
}

bool is_quantised_whole(const std::string& method) {
  const std::string_view name =
      method.starts_with("kv:") ? std::string_view(method).substr(3) : std::string_view(method);
  return name.size() >= 4 && name.size() <= 6 && name[0] == 'q' && name[1] >= '2' && name[1] <= '8' &&
         name[2] == '_' && name.find_first_of(":+") == std::string_view::npos;
}

std::string compression(double ratio) {
  return std::isfinite(ratio) ? fmt::format("{:.4g}x", ratio) : "";
}

namespace {
template <typename T>
void add_new(std::vector<T>& all, const T& one) {
  if (std::find(all.begin(), all.end(), one) == all.end()) all.push_back(one);
}
}  // namespace

Choices choices_of(const Json& result) {
  Choices out;
  for (const char* key : {"rows", "heads", "depths", "kinds"})
    for (const Json* row : objects(result, key)) {
      const std::string method = words(*row, "method");
      add_new(out.contexts, words(*row, "context"));
      if (is_anchor(method)) continue;
      add_new(out.methods, method);
      if (has_figure(*row, "ratio")) add_new(out.ratios, figure(*row, "ratio"));
    }
  std::sort(out.ratios.begin(), out.ratios.end());
  return out;
}

}  // namespace sh::tools::eval_page
