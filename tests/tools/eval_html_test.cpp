// SPDX-License-Identifier: MIT
// The page of compact-eval: everything that was measured is in it, nothing that was not, and no text of the result
// is taken for markup.
#include "tools/eval_html.h"

#include <algorithm>
#include <vector>

#include "tools/program.h"
#include "tools/svg_plot.h"

namespace sh::tools {
namespace {

size_t n_times(const std::string& haystack, const std::string& needle) {
  size_t n = 0;
  for (size_t at = haystack.find(needle); at != std::string::npos; at = haystack.find(needle, at + 1)) ++n;
  return n;
}

Json row(const std::string& method, Json ratio, Json recall, Json kl) {
  return {{"context", "1024"},
          {"method", method},
          {"ratio", ratio},
          {"real_ratio", ratio},
          {"recall", recall},
          {"recall_ci", {0.5, 0.9}},
          {"kl_median", kl},
          {"kl_mean", kl},
          {"kl_ci", nullptr},
          {"top1", nullptr},
          {"seconds", {{"total", 0.25}}},
          {"verdict", nullptr}};
}

Json small_result() {
  return {{"schema", 1},
          {"command", "shorthand compact-eval -m m.gguf"},
          {"machine", "a machine"},
          {"model", {{"file", "m.gguf"}, {"arch", "llama"}, {"n_layer", 5}}},
          {"rows",
           {row("full", 1, 0.95, 0.0), row("none", nullptr, 0.01, 2.0), row("select", 4, 0.9, 1e-3),
            row("select", 8, 0.8, 1e-2), row("solver", 4, nullptr, nullptr), row("kv:q8_0", 1.88, 0.94, 1e-5)}}};
}

/// What stands between two marks, the first time.
std::string between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t at = text.find(begin);
  if (at == std::string::npos) return "";
  return text.substr(at + begin.size(), text.find(end, at + begin.size()) - at - begin.size());
}

/// Value and label of the option that a list opens with.
std::pair<std::string, std::string> chosen(const std::string& page, const std::string& id) {
  const std::string options = between(page, "<select id=\"" + id + "\">", "</select>");
  const size_t at = options.find(" selected>"), value = options.rfind("value=", at);
  if (at == std::string::npos) return {};
  return {between(options.substr(value), "\"", "\""), between(options.substr(at), ">", "<")};
}

/// Names of elements that are not closed in order, or whose attributes are not quoted; raw text of style and
/// script is left out.
std::vector<std::string> markup_faults(const std::string& page) {
  std::vector<std::string> open, faults;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at + 1)) {
    if (page.compare(at, 2, "<!") == 0) continue;
    size_t end = at;
    bool is_quoted = false;
    for (; end < page.size() && (is_quoted || page[end] != '>'); ++end) is_quoted ^= page[end] == '"';
    const std::string tag = page.substr(at + 1, end - at - 1);
    const bool closes = tag[0] == '/';
    const std::string name = tag.substr(closes, tag.find_first_of(" /", 1) - closes);
    at = end;
    if (closes) {
      if (open.empty() || open.back() != name) faults.push_back(tag);
      if (!open.empty()) open.pop_back();
    } else if (tag.back() != '/' && name != "meta" && name != "input") {
      open.push_back(name);
      if (name == "script" || name == "style") at = page.find("</" + name, at) - 1;
    }
  }
  faults.insert(faults.end(), open.begin(), open.end());
  return faults;
}

TEST(EvalHtml, HoldsMethodsFiguresAndTheResultItself) {
  const Json result = small_result();
  const std::string page = eval_html(result);
  EXPECT_EQ(markup_faults(page), std::vector<std::string>{});
  for (const char* part : {"Compaction of m.gguf", "a machine", "shorthand compact-eval -m m.gguf", ">select</td>",
                           ">solver</td>", ">full</td>", ">none</td>", "90.0 %", "1.00e-03",
                           "Median KL, context 1024", "full 95.0 %", "none 1.0 %", ">kv:q8_0 1e-05<"})
    EXPECT_TRUE(contains(page, part)) << part;
  const auto embedded = parse_json(between(page, "id=\"data\">", "</script>"));
  ASSERT_TRUE(embedded.ok()) << embedded.error().message;
  EXPECT_EQ(*embedded, result);
  EXPECT_EQ(eval_html(result), page) << "the same result, the same bytes";
  for (const char* outside : {"http://", "https://", "src=", "@import", "url("})
    EXPECT_FALSE(contains(page, outside)) << outside << ": the page needs nothing from elsewhere";
}

TEST(EvalHtml, WhatWasNotMeasuredIsAbsentNotZero) {
  const std::string page = eval_html(small_result());
  const std::string recall = between(page, "aria-label=\"Answers kept, context 1024\"", "</svg>");
  // select at 4x and 8x and kv:q8_0: three points with intervals. solver has no figure, full and none are lines.
  EXPECT_EQ(n_times(recall, "<title>"), 3u) << recall;
  EXPECT_EQ(n_times(recall, "class=\"interval\""), 3u);
  EXPECT_FALSE(contains(recall, ">solver<"));
  EXPECT_EQ(n_times(between(page, "aria-label=\"Mean KL, context 1024\"", "</svg>"), "class=\"interval\""), 0u)
      << "its interval is null";
  EXPECT_FALSE(contains(page, "Same likeliest token, context")) << "no row has top1: no plot";
  EXPECT_FALSE(contains(page, ">top-1<")) << "and no column";
  EXPECT_FALSE(contains(page, ">verdict<"));
  EXPECT_FALSE(contains(page, "Error per layer")) << "no heads";
  EXPECT_FALSE(contains(page, "Answers by"));
  const std::string solver = between(page, ">solver</td>", "</tr>");
  EXPECT_TRUE(contains(solver, "<td data-v=\"\"></td>")) << solver;
  EXPECT_FALSE(contains(solver, "0.0 %")) << solver;
  EXPECT_FALSE(contains(page, "nan") || contains(page, "inf\"")) << "no number of a drawing is without a value";
}

TEST(EvalHtml, NoTextOfTheResultBecomesMarkup) {
  const std::string evil = "a\"b'</script><script>alert(1)</script><img src=x>&amp;";
  Json result = small_result();
  result["command"] = evil;
  result["machine"] = evil;
  result["model"]["file"] = evil;
  for (Json& one : result["rows"]) {
    one["context"] = evil;
    one["verdict"] = evil;
    if (one["method"] == "select") one["method"] = evil;
  }
  result["heads"] = {
      {{"context", evil}, {"method", evil}, {"ratio", 4}, {"layer", 0}, {"head", 1}, {"rows", 9}, {"error", 0.5}}};
  result["kinds"] = {
      {{"context", evil}, {"method", evil}, {"ratio", 4}, {"kind", evil}, {"n", 2}, {"recall", 0.5}}};
  const std::string page = eval_html(result);
  EXPECT_EQ(markup_faults(page), std::vector<std::string>{});
  EXPECT_EQ(n_times(page, "<script"), n_times(eval_html(small_result()), "<script"));
  EXPECT_FALSE(contains(page, "<img"));
  EXPECT_TRUE(contains(page, "a&quot;b&#39;&lt;/script&gt;")) << "it is shown as it is";
  const auto embedded = parse_json(between(page, "id=\"data\">", "</script>"));
  ASSERT_TRUE(embedded.ok());
  EXPECT_EQ(*embedded, result);
}

TEST(EvalHtml, TakesAnyShapeOfResult) {
  for (const Json& result :
       {Json::object(), Json::array(), Json(nullptr), Json({{"rows", 3}}),
        Json(
            {{"rows", {1, nullptr, Json::object()}}, {"heads", {{{"layer", -1}, {"head", 1e300}, {"error", 1}}}}}),
        Json({{"rows",
               {{{"method", 7}, {"context", nullptr}, {"ratio", "x"}, {"recall_ci", {1}}, {"seconds", 2}}}}})})
    EXPECT_EQ(markup_faults(eval_html(result)), std::vector<std::string>{}) << dump_json(result);
  Json broken = small_result();
  broken["command"] = "bytes \xFF\xFE and \x01";
  EXPECT_FALSE(contains(eval_html(broken), "\xFF"));
}

TEST(EvalHtml, HeatMapHasACellForEachHeadThatWasMeasured) {
  Json result = small_result();
  for (int layer = 0; layer < 5; ++layer)
    for (int head = 0; head < 2; ++head)
      result["heads"].push_back({{"context", "1024"},
                                 {"method", "select"},
                                 {"ratio", 8},
                                 {"layer", layer},
                                 {"head", head},
                                 {"rows", 100 + layer},
                                 {"error", layer == 4 && head == 1 ? Json(nullptr) : Json(0.01 * (layer + 1))}});
  const std::string page = eval_html(result);
  const std::string map =
      between(page, "aria-label=\"Error per layer and head: select at 8x, context 1024\"", "</svg>");
  EXPECT_EQ(n_times(map, "<title>"), 9u) << "ten heads, one without a figure";
  EXPECT_TRUE(contains(map, "layer 3, head 1: error 0.04, 103 rows kept"));
  const auto colour = [&](const std::string& title) {
    return between(between(map, title, "</g>"), "fill=\"", "\"");
  };
  EXPECT_EQ(colour("layer 0, head 0:"), colour("layer 0, head 1:"));
  EXPECT_NE(colour("layer 0, head 0:"), colour("layer 3, head 0:"));
}

TEST(EvalHtml, OpensAtAHeatMap) {
  Json result = small_result();
  // `random` comes first and kv:q4_0 last, at the ratio nearest to 8x: neither has a map.
  result["rows"].insert(result["rows"].begin(), row("random", 4, 0.1, 1.0));
  result["rows"].push_back(row("kv:q4_0", 3.56, 0.9, 1e-3));
  const auto add_head = [&](const char* method, double ratio) {
    result["heads"].push_back(
        {{"context", "1024"}, {"method", method}, {"ratio", ratio}, {"layer", 0}, {"head", 0}, {"error", 0.01}});
  };
  for (const char* method : {"select", "solver"})
    for (const double ratio : {2, 64}) add_head(method, ratio);
  const std::string page = eval_html(result);
  const std::string methods = between(page, "<select id=\"method\">", "</select>");
  EXPECT_EQ(n_times(methods, "<option"), 3u) << "those that have a map, and all: " << methods;
  const auto [method, method_name] = chosen(page, "method");
  const auto [ratio, ratio_name] = chosen(page, "ratio");
  EXPECT_EQ(method_name, "select");
  EXPECT_EQ(ratio_name, "2x") << "nearer to 8x than 64x";
  EXPECT_TRUE(contains(page, "<figure data-context=\"0\" data-ratio=\"" + ratio + "\" data-method=\"" + method))
      << ratio << " " << method;

  Json one = small_result();
  one["heads"] = {
      {{"context", "1024"}, {"method", "select"}, {"ratio", 8}, {"layer", 0}, {"head", 0}, {"error", 0.1}}};
  EXPECT_FALSE(contains(eval_html(one), "<select id=\"method\">")) << "nothing to choose: the one map is shown";
}

TEST(EvalHtml, CountsOneOfAThing) {
  Json result = small_result();
  result["threads"] = 1;
  result["model"]["n_head_kv"] = 2;
  EXPECT_TRUE(contains(eval_html(result), "llama, 5 layers, 2 KV heads, a machine, 1 thread<"));
}

TEST(EvalHtml, BreakdownsAreDrawnWhereSomethingWasAsked) {
  const auto entry = [](const char* method, double ratio, const char* key, Json value, int n, double recall) {
    return Json{{"context", "1024"}, {"method", method}, {"ratio", ratio},
                {key, value},        {"n", n},           {"recall", recall}};
  };
  Json result = small_result();
  result["depths"] = {entry("full", 1, "depth", 0.35, 1, 1), entry("select", 8, "depth", 0.35, 2, 0.5),
                      entry("select", 8, "depth", 0.95, 1, 1)};
  result["kinds"] = {entry("full", 1, "kind", "direct", 1, 1), entry("select", 8, "kind", "direct", 3, 0.66),
                     entry("select", 8, "kind", "absent", 1, 0)};
  const std::string page = eval_html(result);
  EXPECT_EQ(markup_faults(page), std::vector<std::string>{});
  EXPECT_TRUE(contains(page, "Answers by depth at 8x, context 1024") &&
              contains(page, "Answers by kind at 8x, context 1024"));
  EXPECT_TRUE(contains(page, "full: 100.0 % of 1")) << "the full cache stands beside every ratio";
  EXPECT_FALSE(contains(page, "Answers by depth at 4x")) << "nothing was asked there";
}

TEST(SvgPlot, PlacesPointsByTheirLogarithmAndKeepsZeroOnTheEdge) {
  const auto x_of = [](const std::string& svg, int n) {
    size_t at = 0;
    for (int i = 0; i <= n; ++i) at = svg.find("cx=\"", at + 1);
    return std::stod(svg.substr(at + 4));
  };
  const auto y_of = [](const std::string& svg, int n) {
    size_t at = 0;
    for (int i = 0; i <= n; ++i) at = svg.find("cy=\"", at + 1);
    return std::stod(svg.substr(at + 4));
  };
  const std::string svg =
      line_plot({.title = "t",
                 .x_scale = Scale::ratio,
                 .y_scale = Scale::logarithm,
                 .series = {{.label = "m", .points = {{2, 1e-4}, {4, 1e-3}, {8, 1e-2}, {16, 0}}}}});
  EXPECT_NEAR(x_of(svg, 1) - x_of(svg, 0), x_of(svg, 2) - x_of(svg, 1), 0.2) << "twice as small is one step";
  EXPECT_NEAR(y_of(svg, 0) - y_of(svg, 1), y_of(svg, 1) - y_of(svg, 2), 0.2) << "ten times as much is one step";
  EXPECT_GT(y_of(svg, 0), y_of(svg, 1)) << "more is up";
  EXPECT_GE(y_of(svg, 3), y_of(svg, 0));
  EXPECT_EQ(line_plot({.title = "t", .series = {{.label = "m"}}}), "");
}

}  // namespace
}  // namespace sh::tools
