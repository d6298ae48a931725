// SPDX-License-Identifier: MIT
// Plots as SVG text for pages that need nothing from the network: lines with intervals, rows of dots, a heat map.
// Colours come from the page's style sheet (classes s0, s1, ...), so that light and dark pages share the drawing.
#pragma once

#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace sh::tools {

/// Text for element content and quoted attributes; bytes that are no UTF-8 and control characters become U+FFFD.
std::string escape_html(std::string_view text);

constexpr double kNoFigure = std::numeric_limits<double>::quiet_NaN();
/// Colours that can be told apart, also by the colour-blind; beyond them line patterns and markers differ.
constexpr size_t kPlotColours = 7;

enum class Scale {
  ratio,      // log2, "8x"
  logarithm,  // log10; zero and less stand on the lower edge
  share,      // linear, in per cent; 0 to 100 unless a value lies outside
};

struct PlotPoint {
  double x = 0, y = 0;
  double low = kNoFigure, high = kNoFigure;  // interval of y
  std::string title;                         // shown on pointing
};
struct PlotSeries {
  std::string label;
  size_t style = 0;  // colour, pattern and marker; also data-series, by which the page shows and hides it
  bool has_line = true;
  std::vector<PlotPoint> points;  // in the order in which the line joins them
};
struct PlotAnchor {
  std::string label;
  double y = 0;
};
struct Plot {
  std::string title, x_title, y_title;
  Scale x_scale = Scale::ratio, y_scale = Scale::share;
  std::vector<PlotSeries> series;
  std::vector<PlotAnchor> anchors;  // dashed lines over the whole width
};
/// "" when no series has a point.
std::string line_plot(const Plot& plot);

struct DotRow {
  std::string label;
  std::vector<PlotSeries> dots;  // of each series the x of its points, a share
};
std::string dot_plot(const std::string& title, const std::string& x_title, const std::vector<DotRow>& rows);

struct HeatCell {
  int64_t column = 0, row = 0;
  double value = 0;
  std::string title;
};
/// Colours run over log10 of low..high, which several maps may share.
std::string heat_map(const std::string& title, const std::vector<HeatCell>& cells, double low, double high);

/// The marker of a series on its own, for a legend.
std::string legend_mark(size_t style, bool has_line);

}  // namespace sh::tools
