// SPDX-License-Identifier: MIT
#include "tools/eval_html.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "tools/eval_plots.h"
#include "tools/eval_result.h"
#include "tools/svg_plot.h"

namespace sh::tools {

namespace {

using namespace eval_page;

constexpr std::string_view kStyle =
#include "tools/eval_html_style.inl"
    ;
constexpr std::string_view kScript =
#include "tools/eval_html_script.inl"
    ;

// ---- table ----

struct Column {
  const char* key;
  const char* title;
  const char* meaning;
  double scale;
  const char* format;  // nullptr: words
};
constexpr Column kColumns[] = {
    {"context", "context", "", 1, nullptr},
    {"method", "method", "", 1, nullptr},
    {"verdict", "verdict", "", 1, nullptr},
    {"ratio", "asked", "compression asked for", 1, "{:g}x"},
    {"real_ratio", "real", "bytes of the whole cache before / after", 1, "{:.2f}x"},
    {"bytes_after", "KiB", "bytes of the whole cache after", 1.0 / 1024, "{:.0f}"},
    {"n_docs", "docs", "documents measured", 1, "{:g}"},
    {"n_refused", "refused", "documents that could not be compacted so far", 1, "{:g}"},
    {"recall", "answers", "share of right answers", 100, "{:.1f} %"},
    {"recall_ci", "95 %", "interval of the share of right answers, over documents", 100, "{:.1f}"},
    {"recall_of_full", "of full", "share right among those that the full cache answers rightly", 100, "{:.1f} %"},
    {"recall_normalised", "normalised", "(answers - none) / (full - none)", 1, "{:.3f}"},
    {"unparsed", "unparsed", "share of choices without a readable letter", 100, "{:.1f} %"},
    {"hallucination", "invented", "share of the questions without an answer that were given one", 100, "{:.1f} %"},
    {"answer_nll", "answer NLL", "nats a token of the expected answers", 1, "{:.3f}"},
    {"answer_rank", "rank", "median over questions of the lowest place of a token of the expected answer", 1,
     "{:g}"},
    {"kl_median", "KL median", "nats a token", 1, "{:.2e}"},
    {"kl_mean", "KL mean", "nats a token", 1, "{:.2e}"},
    {"kl_ci", "95 %", "interval of the mean KL, over documents", 1, "{:.1e}"},
    {"kl_p99", "KL p99", "nats a token", 1, "{:.2e}"},
    {"kl_max", "KL max", "nats", 1, "{:.2e}"},
    {"top1", "top-1", "same likeliest token", 100, "{:.1f} %"},
    {"top5", "top-5", "share of the five likeliest tokens that both have", 100, "{:.1f} %"},
    {"top10", "top-10", "share of the ten likeliest tokens that both have", 100, "{:.1f} %"},
    {"logit_cosine", "cosine", "of the logits less their means", 1, "{:.5f}"},
    {"confident_flips", "flips", "likeliest token differs where the full cache was sure", 100, "{:.1f} %"},
    {"delta_nll", "ΔNLL", "added nats a token", 1, "{:+.4f}"},
    {"recovery", "recovery", "share of the context's help that is left", 1, "{:.3f}"},
    {"recovery_top_decile", "top decile", "the same over the tokens that the context helps most", 1, "{:.3f}"},
    {"seconds.total", "seconds", "of one compaction", 1, "{:.3g}"},
    {"seconds.total_p50", "p50", "median seconds over documents", 1, "{:.3g}"},
    {"seconds.total_p95", "p95", "seconds that 95 % of the documents stay below", 1, "{:.3g}"},
    {"decode_tps_before", "tok/s before", "decoding from the full cache", 1, "{:.0f}"},
    {"decode_tps_after", "after", "decoding from the compacted cache", 1, "{:.0f}"},
    {"break_even_tokens", "break-even", "tokens to decode until the compaction's seconds are saved", 1, "{:.0f}"},
    {"peak_extra_bytes", "peak KiB", "resident memory that the compaction needed on the way", 1.0 / 1024,
     "{:.0f}"},
    {"heldout_fitted", "head error", "mean held-out error of the heads", 1, "{:.2e}"},
    {"heldout_median", "median", "median held-out error of the heads", 1, "{:.2e}"},
    {"log_mass", "log mass", "rms of log(mass kept / mass), mean over heads", 1, "{:.2e}"},
    {"log_mass_mean", "signed", "mean of it; below 0: the context weighs too little", 1, "{:+.2e}"},
    {"worse_heads", "worse heads", "share of heads worse than their unfitted rows on held-out queries", 100,
     "{:.1f} %"},
    {"fallback_heads", "unfitted heads", "share of heads where validation chose the rows without their fit", 100,
     "{:.1f} %"},
};

/// A cell's text and what it is sorted by; both empty when nothing was measured.
std::pair<std::string, std::string> cell_of(const Json& row, const Column& column) {
  if (column.format == nullptr) {
    const std::string text = words(row, column.key);
    return {text, text};
  }
  const auto shown = [&](double value) { return fmt::format(fmt::runtime(column.format), column.scale * value); };
  if (const auto [low, high] = interval(row, column.key); std::isfinite(low))
    return {fmt::format("{} – {}", shown(low), shown(high)), fmt::format("{}", low)};
  const double value = figure(row, column.key);
  return std::isfinite(value) ? std::pair(shown(value), fmt::format("{}", value))
                              : std::pair(std::string(), std::string());
}

std::string table_section(const Json& result, const Choices& choices) {
  const std::vector<const Json*> rows = objects(result, "rows");
  std::vector<const Column*> columns;
  for (const Column& column : kColumns)
    if (std::any_of(rows.begin(), rows.end(),
                    [&](const Json* row) { return !cell_of(*row, column).first.empty(); }))
      columns.push_back(&column);
  std::string out =
      "<section><h2>Table</h2>\n<p>Press a heading to sort. What was not measured is blank.</p>\n<div "
      "class=\"scroll\"><table><thead><tr>";
  const auto alignment = [](const Column* column) { return column->format == nullptr ? " class=\"words\"" : ""; };
  for (const Column* column : columns)
    out += fmt::format("<th scope=\"col\"{}><button type=\"button\" title=\"{}\">{}</button></th>",
                       alignment(column), escape_html(column->meaning), column->title);
  out += "</tr></thead>\n<tbody>\n";
  for (const Json* row : rows) {
    out += fmt::format("<tr data-context=\"{}\">", choices.context(words(*row, "context")));
    for (const Column* column : columns) {
      const auto [text, key] = cell_of(*row, *column);
      out += fmt::format("<td{} data-v=\"{}\">{}</td>", alignment(column), escape_html(key), escape_html(text));
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div></section>\n";
}

// ---- the page ----

std::string model_line(const Json& result) {
  std::string out = words(result, "model.arch");
  const auto add = [&](const std::string& text) { out += (out.empty() || text.empty() ? "" : ", ") + text; };
  const auto add_count = [&](const char* path, const char* what) {
    if (const double n = figure(result, path); std::isfinite(n))
      add(fmt::format("{:g} {}{}", n, what, n == 1 ? "" : "s"));
  };
  add_count("model.n_layer", "layer");
  add_count("model.n_head_kv", "KV head");
  if (has_figure(result, "model.kv_bytes_per_token"))
    add(fmt::format("{:g} KV bytes a token", figure(result, "model.kv_bytes_per_token")));
  add(words(result, "machine"));
  add_count("threads", "thread");
  if (const std::string kernels = words(result, "kernels"); !kernels.empty()) add("kernels " + kernels);
  if (const std::string commit = words(result, "commit"); !commit.empty()) add("commit " + commit);
  return out;
}

/// Values that the page's elements carry, and what the reader sees of them.
using Options = std::vector<std::pair<size_t, std::string>>;

Options numbered(const std::vector<std::string>& names) {
  Options options;
  for (size_t i = 0; i < names.size(); ++i) options.emplace_back(i, names[i]);
  return options;
}

std::string select(const char* id, const char* label, const Options& options, size_t chosen) {
  if (options.size() < 2) return "";
  std::string out = fmt::format("<label>{} <select id=\"{}\">", label, id);
  for (const auto& [value, name] : options)
    out += fmt::format("<option value=\"{}\"{}>{}</option>", value, value == chosen ? " selected" : "",
                       escape_html(name));
  return out + "<option value=\"all\">all</option></select></label>\n";
}

/// Factors of two from 8x, the ratio that the page opens at.
double steps_from_opening(double ratio) {
  return std::fabs(std::log2(ratio / 8));
}

/// The map that is to be seen when the page opens; null when there is none.
const HeatMap* opening_map(const std::vector<HeatMap>& maps) {
  const auto key = [](const HeatMap& map) {
    return std::tuple(map.context, map.method, steps_from_opening(map.ratio));
  };
  const auto first = std::min_element(maps.begin(), maps.end(),
                                      [&](const HeatMap& a, const HeatMap& b) { return key(a) < key(b); });
  return first == maps.end() ? nullptr : &*first;
}

std::string controls(const Choices& choices, const std::vector<HeatMap>& maps, bool has_anchor_series) {
  const HeatMap* map = opening_map(maps);
  std::vector<std::string> ratios;
  for (const double ratio : choices.ratios) ratios.push_back(compression(ratio));
  const auto nearest = std::min_element(choices.ratios.begin(), choices.ratios.end(), [](double a, double b) {
    return steps_from_opening(a) < steps_from_opening(b);
  });
  const size_t ratio =
      map != nullptr ? choices.ratio(map->ratio) : static_cast<size_t>(nearest - choices.ratios.begin());
  std::set<size_t> methods;
  for (const HeatMap& one : maps) methods.insert(one.method);
  Options mapped;
  for (const size_t method : methods) mapped.emplace_back(method, choices.methods[method]);
  std::string out = "<nav class=\"controls\">\n" + select("context", "Context", numbered(choices.contexts), 0) +
                    select("ratio", "Ratio", numbered(ratios), ratio);
  if (map != nullptr) out += select("method", "Heat map of", mapped, map->method);
  out += "<div class=\"legend\">";
  const auto chip = [&](size_t style, const std::string& label) {
    out += fmt::format("<label><input type=\"checkbox\" checked data-toggle=\"{}\">{}{}</label>", style,
                       legend_mark(style, !is_quantised_whole(label)), escape_html(label));
  };
  for (size_t m = 0; m < choices.methods.size(); ++m) chip(m, choices.methods[m]);
  if (has_anchor_series)
    for (const char* anchor : {"full", "none"}) chip(choices.style(anchor), anchor);
  return out + "</div></nav>\n";
}

/// JSON that may stand in a script element: no '<' in it can end that.
std::string embedded(const Json& result) {
  std::string out;
  for (const char c : dump_json(result)) {
    if (c == '<')
      out += "\\u003c";
    else
      out += c;
  }
  return out;
}

}  // namespace

std::string eval_html(const Json& result) {
  const Choices choices = choices_of(result);
  const bool has_breakdowns = !objects(result, "depths").empty() || !objects(result, "kinds").empty();
  const std::string title = escape_html("Compaction of " + words(result, "model.file"));
  std::string out =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\">\n";
  out += fmt::format("<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n<header><h1>{}</h1>\n<p>{}</p>\n",
                     title, kStyle, title, escape_html(model_line(result)));
  out += fmt::format(
      "<p class=\"command\"><code>{}</code></p>\n<p><a id=\"save\" hidden>Save the figures as "
      "JSON</a></p></header>\n",
      escape_html(words(result, "command")));
  const std::vector<HeatMap> maps = heat_maps(result, choices);
  out += controls(choices, maps, has_breakdowns);
  out += "<main>\n" + table_section(result, choices) + quality_section(result, choices) +
         seconds_section(result, choices) + heat_section(maps, choices) + recall_sections(result, choices);
  out += fmt::format(
      "</main>\n<script type=\"application/json\" "
      "id=\"data\">{}</script>\n<script>{}</script>\n</body>\n</html>\n",
      embedded(result), kScript);
  return out;
}

}  // namespace sh::tools
