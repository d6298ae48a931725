// SPDX-License-Identifier: MIT
#include "tools/eval_plots.h"

#include <fmt/format.h>

#include <limits>
#include <map>
#include <optional>
#include <tuple>

#include "tools/svg_plot.h"

namespace sh::tools::eval_page {

namespace {

std::string percent(double share) {
  return fmt::format("{:.1f} %", 100 * share);
}

struct Metric {
  const char* key;
  const char* interval;  // nullptr: none is measured
  const char* title;
  const char* axis;
  Scale scale;
};
constexpr Metric kMetrics[] = {
    {"recall", "recall_ci", "Answers kept", "right answers (%)", Scale::share},
    {"kl_median", "kl_median_ci", "Median KL", "median KL (nats a token, log)", Scale::logarithm},
    {"kl_mean", "kl_ci", "Mean KL", "mean KL (nats a token, log)", Scale::logarithm},
    {"top1", nullptr, "Same likeliest token", "same likeliest token (%)", Scale::share},
    {"recovery", nullptr, "Context recovery", "of the context's help left (%)", Scale::share},
};

std::string figure_text(const Metric& metric, double value) {
  return metric.scale == Scale::share ? percent(value) : fmt::format("{:.3g}", value);
}

std::string point_title(const Json& row, const Metric& metric) {
  std::string out =
      fmt::format("{} asked {}, really {}: {}", words(row, "method"), compression(figure(row, "ratio")),
                  compression(figure(row, "real_ratio")), figure_text(metric, figure(row, metric.key)));
  const auto [low, high] = metric.interval ? interval(row, metric.interval) : std::pair(kNoFigure, kNoFigure);
  if (std::isfinite(low))
    out += fmt::format(" (95 %: {} to {})", figure_text(metric, low), figure_text(metric, high));
  if (has_figure(row, "seconds.total")) out += fmt::format(", {:.3g} s", figure(row, "seconds.total"));
  return out;
}

/// Series of one context: a method each, its rows by real compression or by seconds.
std::vector<PlotSeries> series_of(const Json& result, const Choices& choices, const std::string& context,
                                  const Metric& metric, const char* x_key, std::optional<double> ratio) {
  std::vector<PlotSeries> out;
  for (size_t m = 0; m < choices.methods.size(); ++m) {
    PlotSeries series{
        .label = choices.methods[m], .style = m, .has_line = !is_quantised_whole(choices.methods[m])};
    for (const Json* row : objects(result, "rows")) {
      if (words(*row, "context") != context || words(*row, "method") != series.label) continue;
      if (ratio && figure(*row, "ratio") != *ratio) continue;
      if (!has_figure(*row, metric.key) || !has_figure(*row, x_key)) continue;
      const auto [low, high] = metric.interval ? interval(*row, metric.interval) : std::pair(kNoFigure, kNoFigure);
      series.points.push_back(
          {figure(*row, x_key), figure(*row, metric.key), low, high, point_title(*row, metric)});
    }
    std::stable_sort(series.points.begin(), series.points.end(),
                     [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
    out.push_back(std::move(series));
  }
  return out;
}

/// full and none; for KL also the caches in fewer bits, the unit that verdicts are given in.
std::vector<PlotAnchor> anchors_of(const Json& result, const std::string& context, const Metric& metric) {
  std::vector<PlotAnchor> out;
  for (const Json* row : objects(result, "rows")) {
    const std::string method = words(*row, "method");
    const bool is_wanted = is_anchor(method) || (metric.scale == Scale::logarithm && is_quantised_whole(method));
    const double value = figure(*row, metric.key);
    if (!is_wanted || words(*row, "context") != context || !std::isfinite(value) ||
        (metric.scale == Scale::logarithm && value <= 0))
      continue;
    out.push_back({fmt::format("{} {}", method, figure_text(metric, value)), value});
  }
  return out;
}

std::string figure_start(const Choices& choices, const std::string& context, std::optional<double> ratio,
                         const std::string& method = "") {
  std::string out = fmt::format("<figure data-context=\"{}\"", choices.context(context));
  if (ratio) out += fmt::format(" data-ratio=\"{}\"", choices.ratio(*ratio));
  if (!method.empty()) out += fmt::format(" data-method=\"{}\"", choices.method(method));
  return out + ">";
}

std::string drawing(const std::string& start, const std::string& caption, const std::string& svg) {
  return svg.empty() ? ""
                     : fmt::format("{}<figcaption>{}</figcaption><div class=\"scroll\">{}</div></figure>\n", start,
                                   escape_html(caption), svg);
}

std::string section(const std::string& title, const std::string& explanation, const std::string& figures) {
  return figures.empty()
             ? ""
             : fmt::format("<section><h2>{}</h2>\n<p>{}</p>\n{}</section>\n", title, explanation, figures);
}

}  // namespace

std::string quality_section(const Json& result, const Choices& choices) {
  std::string figures;
  for (const std::string& context : choices.contexts)
    for (const Metric& metric : kMetrics) {
      const std::string title = fmt::format("{}, context {}", metric.title, context);
      figures +=
          drawing(figure_start(choices, context, std::nullopt), title,
                  line_plot({.title = title,
                             .x_title = "real bytes of the cache, before / after (log)",
                             .y_title = metric.axis,
                             .x_scale = Scale::ratio,
                             .y_scale = metric.scale,
                             .series = series_of(result, choices, context, metric, "real_ratio", std::nullopt),
                             .anchors = anchors_of(result, context, metric)}));
    }
  return section("Quality against real compression",
                 "Bars are 95 % intervals over documents. Dashed lines: the full cache, no context, and the whole "
                 "cache in fewer bits.",
                 figures);
}

std::string seconds_section(const Json& result, const Choices& choices) {
  std::string figures;
  for (const std::string& context : choices.contexts)
    for (const double ratio : choices.ratios)
      for (const Metric& metric : kMetrics) {
        if (std::string_view(metric.key) != "recall" && std::string_view(metric.key) != "kl_median") continue;
        const std::string title = fmt::format("{} at {}, context {}", metric.title, compression(ratio), context);
        figures +=
            drawing(figure_start(choices, context, ratio), title,
                    line_plot({.title = title,
                               .x_title = "seconds of one compaction (log)",
                               .y_title = metric.axis,
                               .x_scale = Scale::logarithm,
                               .y_scale = metric.scale,
                               .series = series_of(result, choices, context, metric, "seconds.total", ratio),
                               .anchors = anchors_of(result, context, metric)}));
      }
  return section("Quality against seconds",
                 "At the ratio chosen above: up (answers) or down (KL) and to the left is better.", figures);
}

// ---- heads ----

std::vector<HeatMap> heat_maps(const Json& result, const Choices& choices) {
  std::map<std::tuple<size_t, size_t, double>, std::vector<HeatCell>> cells;  // context, method, ratio
  for (const Json* head : objects(result, "heads")) {
    const double layer = figure(*head, "layer"), index = figure(*head, "head"), error = figure(*head, "error"),
                 ratio = figure(*head, "ratio");
    const size_t method = choices.method(words(*head, "method"));
    const bool is_place = layer >= 0 && layer < 1000 && index >= 0 && index < 1000;
    const bool is_compacted = method < choices.methods.size();  // of full and none there is no error
    if (!is_place || !is_compacted || !std::isfinite(error) || error < 0 || !std::isfinite(ratio)) continue;
    const std::string rows =
        has_figure(*head, "rows") ? fmt::format(", {:g} rows kept", figure(*head, "rows")) : "";
    cells[{choices.context(words(*head, "context")), method, ratio}].push_back(
        {static_cast<int64_t>(layer), static_cast<int64_t>(index), error,
         fmt::format("layer {:g}, head {:g}: error {:.3g}{}", layer, index, error, rows)});
  }
  std::vector<HeatMap> maps;
  for (auto& [key, of_map] : cells) {
    const auto& [context, method, ratio] = key;
    maps.push_back({context, method, ratio, std::move(of_map)});
  }
  return maps;
}

std::string heat_section(const std::vector<HeatMap>& maps, const Choices& choices) {
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for (const HeatMap& map : maps)
    for (const HeatCell& cell : map.cells) {
      if (cell.value > 0) low = std::min(low, cell.value);
      high = std::max(high, cell.value);
    }
  if (high == 0) low = high = 1;  // no error anywhere
  std::string figures;
  for (const HeatMap& map : maps) {
    const std::string &context = choices.contexts[map.context], &method = choices.methods[map.method];
    const std::string title = fmt::format("{} at {}, context {}", method, compression(map.ratio), context);
    figures += drawing(figure_start(choices, context, map.ratio, method), title,
                       heat_map("Error per layer and head: " + title, map.cells, low, high));
  }
  return section("Error per layer and head",
                 "Held-out error of each KV head. The colours mean the same in all maps.", figures);
}

namespace {

// ---- depth and kind ----

/// Entries of `depths` or `kinds` that belong into the drawing of a context and ratio; full and none belong to all
/// ratios.
std::vector<const Json*> entries_at(const Json& result, const char* key, const std::string& context,
                                    double ratio) {
  std::vector<const Json*> out;
  for (const Json* entry : objects(result, key))
    if (words(*entry, "context") == context && has_figure(*entry, "recall") &&
        (is_anchor(words(*entry, "method")) || figure(*entry, "ratio") == ratio))
      out.push_back(entry);
  return out;
}

std::string entry_title(const Json& entry) {
  return fmt::format("{}: {}{}", words(entry, "method"), percent(figure(entry, "recall")),
                     has_figure(entry, "n") ? fmt::format(" of {:g}", figure(entry, "n")) : "");
}

PlotSeries& series_for(std::vector<PlotSeries>& all, const Choices& choices, const std::string& method) {
  for (PlotSeries& series : all)
    if (series.label == method) return series;
  return all.emplace_back(PlotSeries{.label = method, .style = choices.style(method)});
}

bool has_methods(const std::vector<const Json*>& entries) {
  return std::any_of(entries.begin(), entries.end(),
                     [](const Json* entry) { return !is_anchor(words(*entry, "method")); });
}

std::string depth_plot(const std::vector<const Json*>& entries, const Choices& choices, const std::string& title) {
  std::vector<PlotSeries> series;
  for (const Json* entry : entries)
    if (has_figure(*entry, "depth"))
      series_for(series, choices, words(*entry, "method"))
          .points.push_back(
              {figure(*entry, "depth"), figure(*entry, "recall"), kNoFigure, kNoFigure, entry_title(*entry)});
  for (PlotSeries& one : series)
    std::stable_sort(one.points.begin(), one.points.end(),
                     [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
  return line_plot({.title = title,
                    .x_title = "place of the fact in the context (%)",
                    .y_title = "right answers (%)",
                    .x_scale = Scale::share,
                    .y_scale = Scale::share,
                    .series = std::move(series)});
}

std::string kind_plot(const std::vector<const Json*>& entries, const Choices& choices, const std::string& title) {
  std::vector<DotRow> rows;
  for (const Json* entry : entries) {
    const std::string kind = words(*entry, "kind");
    auto row = std::find_if(rows.begin(), rows.end(), [&](const DotRow& r) { return r.label == kind; });
    if (row == rows.end()) row = rows.insert(rows.end(), DotRow{.label = kind});
    series_for(row->dots, choices, words(*entry, "method"))
        .points.push_back({figure(*entry, "recall"), 0, kNoFigure, kNoFigure, entry_title(*entry)});
  }
  return dot_plot(title, "right answers (%)", rows);
}

}  // namespace

std::string recall_sections(const Json& result, const Choices& choices) {
  std::string by_depth, by_kind;
  for (const std::string& context : choices.contexts)
    for (const double ratio : choices.ratios) {
      const std::string at = fmt::format("{}, context {}", compression(ratio), context);
      if (const auto entries = entries_at(result, "depths", context, ratio); has_methods(entries)) {
        by_depth += drawing(figure_start(choices, context, ratio), "Answers by depth at " + at,
                            depth_plot(entries, choices, "Answers by depth at " + at));
      }
      if (const auto entries = entries_at(result, "kinds", context, ratio); has_methods(entries)) {
        by_kind += drawing(figure_start(choices, context, ratio), "Answers by kind at " + at,
                           kind_plot(entries, choices, "Answers by kind at " + at));
      }
    }
  return section("Answers by depth", "Where in the context the fact stands: 0 % is its start.", by_depth) +
         section("Answers by kind of question", "Point at a mark for the number of questions.", by_kind);
}

}  // namespace sh::tools::eval_page
