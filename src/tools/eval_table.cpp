// SPDX-License-Identifier: MIT
// The result for people.
#include <fmt/format.h>

#include <algorithm>

#include "tools/compact_eval.h"
#include "tools/eval_json.h"
#include "tools/table.h"

namespace sh::tools {

namespace {

/// A column: what the legend says of it, the row's key, how it is scaled and printed.
struct Column {
  const char* title;
  const char* meaning;
  const char* key;
  double scale;
  const char* format;
};
// Short enough that a table of plain method names stays within 160 columns, which leaves the median KL and the
// added NLL to the JSON and the page.
constexpr Column kColumns[] = {
    {"real", "bytes of the full cache / of this one", "real_ratio", 1, "{:.2f}x"},
    {"right", "% of the answers", "recall", 100, "{:.1f}"},
    {"95 %", "interval of it", "recall_ci", 100, "{:.0f}"},
    {"unread", "% without a readable letter", "unparsed", 100, "{:.1f}"},
    {"of full", "% right of what the full cache answers rightly", "recall_of_full", 100, "{:.1f}"},
    {"KL mean", "nats a token", "kl_mean", 1, "{:.1e}"},
    {"KL p99", "its 99th percentile", "kl_p99", 1, "{:.1e}"},
    {"top-1", "% of tokens with the same likeliest next", "top1", 100, "{:.1f}"},
    {"flips", "% with another where the full cache was sure", "confident_flips", 100, "{:.1f}"},
    {"R", "share of the context's help that is left", "recovery", 1, "{:.2f}"},
    {"R top", "the same where it helps most", "recovery_top_decile", 1, "{:.2f}"},
};

/// "name: meaning; ..." in lines as wide as the table may be.
std::string legend(const std::vector<std::pair<std::string, std::string>>& entries) {
  constexpr size_t kWidth = 160;
  std::string out, line;
  for (const auto& [name, meaning] : entries) {
    const std::string entry = name + ": " + meaning;
    if (!line.empty() && line.size() + std::string_view("; ;").size() + entry.size() > kWidth) {
      out += line + ";\n";
      line.clear();
    }
    line += (line.empty() ? "" : "; ") + entry;
  }
  return out + line + "\n";
}

std::string shown(double value, double scale, const char* format) {
  return std::isnan(value) ? "" : fmt::format(fmt::runtime(format), value * scale);
}
/// A figure or both ends of an interval.
std::string shown(const Json& row, const Column& column) {
  const Json& value = row.at(column.key);
  if (!value.is_array()) return shown(number_at(row, column.key), column.scale, column.format);
  return shown(value[0].get<double>(), column.scale, column.format) + "-" +
         shown(value[1].get<double>(), column.scale, column.format);
}

}  // namespace

std::string eval_table(const std::vector<Json>& rows) {
  std::vector<std::string> header = {"context", "method", "ratio"};
  std::vector<const Column*> columns;  // only choices can be unreadable
  for (const Column& column : kColumns)
    if (std::string_view(column.key) != "unparsed" ||
        std::any_of(rows.begin(), rows.end(), [](const Json& row) { return !row.at("unparsed").is_null(); }))
      columns.push_back(&column);
  std::vector<std::pair<std::string, std::string>> meanings;
  for (const Column* column : columns) {
    header.emplace_back(column->title);
    meanings.emplace_back(column->title, column->meaning);
  }
  for (const char* title : {"s", "tok/s", "verdict"}) header.emplace_back(title);
  meanings.insert(meanings.end(),
                  {{"s", "seconds of one compaction"}, {"tok/s", "decoding, against the full cache"}});
  Table table(header);
  for (const Json& row : rows) {
    std::vector<std::string> cells = {row.at("context").get<std::string>(), row.at("method").get<std::string>(),
                                      shown(number_at(row, "ratio"), 1, "{:g}x")};
    for (const Column* column : columns) cells.push_back(shown(row, *column));
    cells.push_back(shown(number_at(row.at("seconds"), "total"), 1, "{:.2f}"));
    cells.push_back(shown(number_at(row, "decode_tps_after") / number_at(row, "decode_tps_before"), 1, "x{:.1f}"));
    cells.push_back(row.at("verdict").is_null() ? "" : row.at("verdict").get<std::string>());
    table.add(std::move(cells));
  }
  return table.markdown() + "\n" + legend(meanings);
}

std::string lost_answers(const std::vector<EvalCell>& cells) {
  constexpr size_t kFew = 8;
  std::string out;
  for (const EvalCell& cell : cells) {
    std::vector<std::string> lines;
    for (const EvalItem& item : cell.items)
      if (item.has_answer && item.is_right_with_full && !item.is_right) {
        const std::string question = item.question.substr(0, item.question.find('\n'));
        lines.push_back(fmt::format("  {}#{} {} expected \"{}\", got \"{}\"\n", item.document, item.index,
                                    question, item.expected, item.answer));
      }
    if (lines.empty() || lines.size() > kFew) continue;
    out += fmt::format("lost by {} {}{}:\n", cell.context, cell.method,
                       cell.ratio > 0 ? fmt::format(" at {:g}x", cell.ratio) : "");
    for (const std::string& line : lines) out += line;
  }
  return out;
}

}  // namespace sh::tools
