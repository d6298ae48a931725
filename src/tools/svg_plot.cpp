// SPDX-License-Identifier: MIT
#include "tools/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/utf8.h"

namespace sh::tools {

namespace {

constexpr double kWidth = 670, kHeight = 360, kLeft = 62, kRight = 170, kTop = 14, kBottom = 50;
constexpr double kLabelGap = 13;
constexpr double kLeastLog = 1e-9;  // below this a log axis does not reach: smaller than float sums can tell

struct Tick {
  double at;
  std::string label;
};
struct Axis {
  Scale scale;
  double low, high;  // in scaled units
  std::vector<Tick> ticks;

  double scaled(double value) const {
    if (scale == Scale::share) return value;
    const double log =
        scale == Scale::ratio ? std::log2(std::max(value, kLeastLog)) : std::log10(std::max(value, kLeastLog));
    return std::clamp(log, low, high);
  }
  double position(double value, double from, double to) const {
    return from + (scaled(value) - low) / (high - low) * (to - from);
  }
};

std::string decade_label(double exponent, double factor) {
  const double value = factor * std::pow(10.0, exponent);
  return value >= 1e-3 && value < 1e5 ? fmt::format("{:g}", value) : fmt::format("{:g}e{:g}", factor, exponent);
}

Axis ratio_axis(double least, double most) {
  Axis axis{.scale = Scale::ratio,
            .low = std::floor(std::log2(least) + 1e-9),
            .high = std::ceil(std::log2(most) - 1e-9)};
  if (axis.high - axis.low < 1) axis.high = axis.low + 1;
  for (double e = axis.low; e <= axis.high; ++e)
    axis.ticks.push_back({std::exp2(e), fmt::format("{:g}x", std::exp2(e))});
  return axis;
}

Axis log_axis(double least, double most) {
  Axis axis{.scale = Scale::logarithm,
            .low = std::floor(std::log10(least) + 1e-9),
            .high = std::ceil(std::log10(most) - 1e-9)};
  if (axis.high - axis.low < 1) axis.high = axis.low + 1;
  const double n_decades = axis.high - axis.low;
  const double step = std::max(1.0, std::ceil(n_decades / 8));
  for (double e = axis.low; e <= axis.high; e += step) {
    axis.ticks.push_back({std::pow(10.0, e), decade_label(e, 1)});
    if (n_decades < 3 && e < axis.high)
      for (const double factor : {2.0, 5.0})
        axis.ticks.push_back({factor * std::pow(10.0, e), decade_label(e, factor)});
  }
  return axis;
}

Axis share_axis(double least, double most) {
  Axis axis{.scale = Scale::share,
            .low = std::min(0.0, std::floor(least * 5) / 5),
            .high = std::max(1.0, std::ceil(most * 5 - 1e-9) / 5)};
  const double step = 0.2 * std::max(1.0, std::ceil((axis.high - axis.low) / 2));
  for (double at = axis.low; at <= axis.high + 1e-9; at += step)
    axis.ticks.push_back({at, fmt::format("{:.0f} %", 100 * at)});
  return axis;
}

Axis axis_over(Scale scale, const std::vector<double>& values) {
  double least = std::numeric_limits<double>::infinity(), most = -least;
  for (const double value : values)
    if (std::isfinite(value) && (scale == Scale::share || value >= kLeastLog)) {
      least = std::min(least, value);
      most = std::max(most, value);
    }
  if (most < least) least = most = 1;  // nothing that a log axis could show: all at its lower edge
  if (scale == Scale::ratio) return ratio_axis(least, most);
  return scale == Scale::logarithm ? log_axis(least, most) : share_axis(least, most);
}

std::string clipped(const std::string& label) {
  constexpr size_t kMost = 23;
  std::string out;
  size_t n = 0;
  for (std::string_view rest = label; !rest.empty(); ++n) {
    if (n == kMost - 1 && rest.size() > 1) return out + "\u2026";
    const int n_bytes = decode_utf8(rest).n_bytes;
    out += rest.substr(0, static_cast<size_t>(n_bytes));
    rest.remove_prefix(static_cast<size_t>(n_bytes));
  }
  return out;
}

std::string marker(size_t style, double x, double y) {
  switch (style % 5) {
    case 0:
      return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"/>", x, y);
    case 1:
      return fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"7\" height=\"7\"/>", x - 3.5, y - 3.5);
    case 2:
      return fmt::format("<path d=\"M{:.1f} {:.1f}l4.5 8h-9z\"/>", x, y - 5);
    case 3:
      return fmt::format("<path d=\"M{:.1f} {:.1f}l5 5l-5 5l-5-5z\"/>", x, y - 5);
    default:
      return fmt::format("<path class=\"stroke\" d=\"M{:.1f} {:.1f}l8 8m0-8l-8 8\"/>", x - 4, y - 4);
  }
}

std::string style_class(size_t style) {
  return fmt::format("s{} d{}", style % kPlotColours, style / kPlotColours % 3);
}

std::string group_start(size_t style) {
  return fmt::format("<g class=\"{}\" data-series=\"{}\">", style_class(style), style);
}

std::string svg_start(double width, double height, const std::string& title) {
  return fmt::format(
      "<svg viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" height=\"{1:.0f}\" role=\"img\" aria-label=\"{2}\">",
      width, height, escape_html(title));
}

std::string text_at(double x, double y, const char* anchor, const std::string& text,
                    const std::string& more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>", x, y, anchor, more,
                     escape_html(text));
}

std::string titled(const std::string& shape, const std::string& title) {
  return fmt::format("<g><title>{}</title>{}</g>", escape_html(title), shape);
}

/// Names at the right ends of lines, moved apart where they would overlap.
struct EndLabel {
  double x, y, at;  // of the last point; where the name goes
  const PlotSeries* series;
};
void spread(std::vector<EndLabel>& labels, double bottom) {
  std::stable_sort(labels.begin(), labels.end(), [](const EndLabel& a, const EndLabel& b) { return a.y < b.y; });
  for (size_t i = 1; i < labels.size(); ++i) labels[i].at = std::max(labels[i].at, labels[i - 1].at + kLabelGap);
  for (size_t i = labels.size(); i-- > 0;)
    labels[i].at = std::min(labels[i].at, i + 1 == labels.size() ? bottom : labels[i + 1].at - kLabelGap);
}

std::string axes(const Axis& x, const Axis& y, const Plot& plot) {
  const double right = kWidth - kRight, bottom = kHeight - kBottom;
  std::string out;
  for (const Tick& tick : y.ticks) {
    const double at = y.position(tick.at, bottom, kTop);
    out += fmt::format("<path class=\"grid\" d=\"M{} {:.1f}H{}\"/>", kLeft, at, right) +
           text_at(kLeft - 6, at + 4, "end", tick.label);
  }
  for (const Tick& tick : x.ticks) {
    const double at = x.position(tick.at, kLeft, right);
    out += fmt::format("<path class=\"grid\" d=\"M{:.1f} {}V{}\"/>", at, kTop, bottom) +
           text_at(at, bottom + 17, "middle", tick.label);
  }
  out += text_at((kLeft + right) / 2, kHeight - 10, "middle", plot.x_title, " class=\"title\"");
  return out + text_at(15, (kTop + bottom) / 2, "middle", plot.y_title,
                       fmt::format(" class=\"title\" transform=\"rotate(-90 15 {})\"", (kTop + bottom) / 2));
}

/// Blue through green to yellow, lighter all the way, so that a print without colours still reads.
std::string heat_colour(double share) {
  static constexpr std::array<std::array<double, 3>, 5> kStops = {
      {{24, 32, 92}, {34, 92, 138}, {48, 146, 136}, {132, 196, 104}, {248, 226, 92}}};
  const double at = std::clamp(share, 0.0, 1.0) * (kStops.size() - 1);
  const size_t low = std::min(static_cast<size_t>(at), kStops.size() - 2);
  std::array<int, 3> rgb{};
  for (size_t i = 0; i < 3; ++i)
    rgb[i] = static_cast<int>(
        std::lround(kStops[low][i] + (at - static_cast<double>(low)) * (kStops[low + 1][i] - kStops[low][i])));
  return fmt::format("#{:02x}{:02x}{:02x}", rgb[0], rgb[1], rgb[2]);
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    const bool is_control = c.code_point < 32 && c.code_point != '\n' && c.code_point != '\t';
    switch (c.code_point) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        append_utf8(out, is_control || !c.is_valid ? 0xFFFD : c.code_point);
    }
    text.remove_prefix(static_cast<size_t>(c.n_bytes));
  }
  return out;
}

std::string line_plot(const Plot& plot) {
  std::vector<double> xs, ys;
  for (const PlotSeries& series : plot.series)
    for (const PlotPoint& point : series.points) {
      xs.push_back(point.x);
      ys.insert(ys.end(), {point.y, point.low, point.high});
    }
  if (xs.empty()) return "";
  for (const PlotAnchor& anchor : plot.anchors) ys.push_back(anchor.y);
  const Axis x = axis_over(plot.x_scale, xs), y = axis_over(plot.y_scale, ys);
  const double right = kWidth - kRight, bottom = kHeight - kBottom;
  std::string out = svg_start(kWidth, kHeight, plot.title) + axes(x, y, plot);
  for (size_t i = 0; i < plot.anchors.size(); ++i) {
    const double at = y.position(plot.anchors[i].y, bottom, kTop);
    out += fmt::format("<g class=\"anchor\"><path d=\"M{} {:.1f}H{}\"/>", kLeft, at, right) +
           text_at(kLeft + 6 + 120 * static_cast<double>(i), at - 3, "start", plot.anchors[i].label) + "</g>";
  }
  std::vector<EndLabel> labels;
  for (const PlotSeries& series : plot.series) {
    if (series.points.empty()) continue;
    out += group_start(series.style);
    std::string line, marks;
    for (const PlotPoint& point : series.points) {
      const double px = x.position(point.x, kLeft, right), py = y.position(point.y, bottom, kTop);
      line += fmt::format("{}{:.1f} {:.1f}", line.empty() ? "M" : "L", px, py);
      std::string mark;
      if (std::isfinite(point.low) && std::isfinite(point.high))
        mark = fmt::format("<path class=\"interval\" d=\"M{0:.1f} {1:.1f}V{2:.1f}\"/>", px,
                           y.position(point.low, bottom, kTop), y.position(point.high, bottom, kTop));
      marks += titled(mark + marker(series.style, px, py), point.title);
    }
    if (series.has_line && series.points.size() > 1) out += fmt::format("<path class=\"line\" d=\"{}\"/>", line);
    out += marks + "</g>";
    const PlotPoint& last = *std::max_element(series.points.begin(), series.points.end(),
                                              [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
    const double py = y.position(last.y, bottom, kTop);
    labels.push_back({x.position(last.x, kLeft, right), py, py, &series});
  }
  spread(labels, bottom);
  for (const EndLabel& label : labels) {
    out += group_start(label.series->style) +
           fmt::format("<path class=\"leader\" d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\"/>", label.x + 5, label.y,
                       right + 8, label.at);
    out += text_at(right + 11, label.at + 4, "start", clipped(label.series->label), " class=\"name\"") + "</g>";
  }
  return out + "</svg>";
}

std::string dot_plot(const std::string& title, const std::string& x_title, const std::vector<DotRow>& rows) {
  constexpr double kLabels = 170, kRowHeight = 34;
  const double right = kWidth - 30, bottom = kTop + kRowHeight * static_cast<double>(rows.size());
  const Axis x = axis_over(Scale::share, {});
  std::string out = svg_start(kWidth, bottom + kBottom, title);
  for (const Tick& tick : x.ticks) {
    const double at = x.position(tick.at, kLabels, right);
    out += fmt::format("<path class=\"grid\" d=\"M{:.1f} {}V{}\"/>", at, kTop, bottom) +
           text_at(at, bottom + 17, "middle", tick.label);
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    const double middle = kTop + kRowHeight * (static_cast<double>(r) + 0.5);
    out += fmt::format("<path class=\"grid\" d=\"M{} {:.1f}H{}\"/>", kLabels, middle, right) +
           text_at(kLabels - 8, middle + 4, "end", rows[r].label);
    const double n = static_cast<double>(rows[r].dots.size());
    for (size_t i = 0; i < rows[r].dots.size(); ++i) {
      const PlotSeries& dots = rows[r].dots[i];
      const double offset = n > 1 ? (static_cast<double>(i) / (n - 1) - 0.5) * (kRowHeight - 12) : 0;
      out += group_start(dots.style);
      for (const PlotPoint& point : dots.points)
        out += titled(marker(dots.style, x.position(point.x, kLabels, right), middle + offset), point.title);
      out += "</g>";
    }
  }
  return out + text_at((kLabels + right) / 2, bottom + kBottom - 10, "middle", x_title, " class=\"title\"") +
         "</svg>";
}

std::string heat_map(const std::string& title, const std::vector<HeatCell>& cells, double low, double high) {
  int64_t n_columns = 1, n_rows = 1;
  for (const HeatCell& cell : cells) {
    n_columns = std::max(n_columns, cell.column + 1);
    n_rows = std::max(n_rows, cell.row + 1);
  }
  const double size = std::clamp(640.0 / static_cast<double>(n_columns), 10.0, 30.0);
  const double width = std::max(kLeft + size * static_cast<double>(n_columns) + 20, 430.0),
               bottom = kTop + size * static_cast<double>(n_rows);
  std::string out = svg_start(width, bottom + 92, title);
  const double span = std::log10(high) - std::log10(low);
  const auto share = [&](double value) {
    return value <= low || span <= 0 ? 0.0 : (std::log10(value) - std::log10(low)) / span;
  };
  for (const HeatCell& cell : cells)
    out += titled(
        fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>",
                    kLeft + size * static_cast<double>(cell.column), kTop + size * static_cast<double>(cell.row),
                    size - 1, size - 1, heat_colour(share(cell.value))),
        cell.title);
  const auto step = [&](int64_t n) {
    return std::max<int64_t>(1, (n * static_cast<int64_t>(size < 20 ? 2 : 1) + 19) / 20);
  };
  for (int64_t c = 0; c < n_columns; c += step(n_columns))
    out += text_at(kLeft + size * (static_cast<double>(c) + 0.5), bottom + 14, "middle", std::to_string(c));
  for (int64_t r = 0; r < n_rows; r += step(n_rows))
    out += text_at(kLeft - 6, kTop + size * (static_cast<double>(r) + 0.5) + 4, "end", std::to_string(r));
  out += text_at(kLeft + size * static_cast<double>(n_columns) / 2, bottom + 32, "middle", "layer",
                 " class=\"title\"");
  out += text_at(18, (kTop + bottom) / 2, "middle", "head",
                 fmt::format(" class=\"title\" transform=\"rotate(-90 18 {:.1f})\"", (kTop + bottom) / 2));
  constexpr int kSteps = 40;
  for (int i = 0; i < kSteps; ++i)
    out += fmt::format("<rect x=\"{}\" y=\"{:.1f}\" width=\"7\" height=\"10\" fill=\"{}\"/>", kLeft + 7 * i,
                       bottom + 46, heat_colour(i / (kSteps - 1.0)));
  out += text_at(kLeft, bottom + 70, "start", fmt::format("{:.2g}", low)) +
         text_at(kLeft + 7 * kSteps, bottom + 70, "end", fmt::format("{:.2g}", high));
  return out +
         text_at(kLeft, bottom + 86, "start", "relative error of the head's output (log scale)",
                 " class=\"title\"") +
         "</svg>";
}

std::string legend_mark(size_t style, bool has_line) {
  return fmt::format("<svg width=\"28\" height=\"12\" aria-hidden=\"true\"><g class=\"{}\">{}{}</g></svg>",
                     style_class(style), has_line ? "<path class=\"line\" d=\"M1 6H27\"/>" : "",
                     marker(style, 14, 6));
}

}  // namespace sh::tools
