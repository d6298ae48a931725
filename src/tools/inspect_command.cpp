// SPDX-License-Identifier: MIT
// shorthand inspect: metadata and tensors of a model file. Opens any GGUF file, of a known architecture or not.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/json.h"
#include "base/utf8.h"
#include "gguf/gguf.h"
#include "tools/commands.h"
#include "tools/table.h"
#include "tools/terminal.h"

namespace sh::tools {

namespace {

constexpr size_t kShownItems = 6;    // of an array
constexpr size_t kShownBytes = 120;  // of a string

struct FormatTotal {
  int64_t n_tensors = 0, n_elements = 0, n_bytes = 0;
};

std::map<std::string, FormatTotal> totals_of(const gguf::File& file) {
  std::map<std::string, FormatTotal> totals;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    FormatTotal& total = totals[tensor_format(tensor.dtype).name];
    ++total.n_tensors;
    total.n_elements += tensor.n_elements();
    total.n_bytes += static_cast<int64_t>(tensor.data.size());
  }
  return totals;
}

/// A value as JSON; arrays keep their first items and long strings their start, with how much there is.
Json abbreviated(const gguf::Value& value) {
  return std::visit(
      [](const auto& v) -> Json {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, gguf::Array>) {
          return std::visit(
              [](const auto& items) {
                Json first = Json::array();
                for (size_t i = 0; i < std::min(items.size(), kShownItems); ++i) first.push_back(items[i]);
                return Json{{"n", items.size()}, {"first", first}};
              },
              v.items);
        } else {
          return v;
        }
      },
      value);
}

std::string value_text(const gguf::Value& value) {
  const Json json = abbreviated(value);
  if (!json.is_object()) {
    const std::string text = dump_json(json);
    if (text.size() <= kShownBytes) return text;
    std::string start = text.substr(0, kShownBytes);
    start.resize(start.size() - incomplete_utf8_tail(start));
    return fmt::format("{}... ({} bytes)", start, text.size());
  }
  std::string items = dump_json(json["first"]);
  const auto n = json["n"].get<size_t>();
  if (n > kShownItems) items.insert(items.size() - 1, ",...");
  return fmt::format("{} items {}", n, items);
}

std::string shape_text(const gguf::TensorInfo& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.shape, ", "));
}

void print_text(const gguf::File& file) {
  fmt::print("{}\n\nMetadata: {} keys\n\n", file.path(), file.metadata().size());
  size_t width = 0;
  for (const auto& [key, value] : file.metadata()) width = std::max(width, key.size());
  for (const auto& [key, value] : file.metadata()) fmt::print("  {:<{}}  {}\n", key, width, value_text(value));
  fmt::print("\nTensors: {}\n\n", file.tensors().size());
  Table tensors({"name", "format", "shape", "bytes"});
  for (const gguf::TensorInfo& tensor : file.tensors())
    tensors.add({tensor.name, tensor_format(tensor.dtype).name, shape_text(tensor),
                 fmt::format("{}", tensor.data.size())});
  fmt::print("{}\nTotals\n\n", tensors.markdown());
  Table totals({"format", "tensors", "elements", "bytes", "size"}, 1);
  FormatTotal all;
  const auto add = [&](const std::string& name, const FormatTotal& t) {
    totals.add({name, fmt::format("{}", t.n_tensors), fmt::format("{}", t.n_elements),
                fmt::format("{}", t.n_bytes), size_text(t.n_bytes)});
  };
  for (const auto& [name, t] : totals_of(file)) {
    add(name, t);
    all.n_tensors += t.n_tensors;
    all.n_elements += t.n_elements;
    all.n_bytes += t.n_bytes;
  }
  add("all", all);
  fmt::print("{}", totals.markdown());
}

void print_json(const gguf::File& file) {
  Json out = {
      {"file", file.path()}, {"metadata", Json::object()}, {"tensors", Json::array()}, {"totals", Json::object()}};
  for (const auto& [key, value] : file.metadata()) out["metadata"][key] = abbreviated(value);
  for (const gguf::TensorInfo& tensor : file.tensors())
    out["tensors"].push_back({{"name", tensor.name},
                              {"format", tensor_format(tensor.dtype).name},
                              {"shape", tensor.shape},
                              {"bytes", tensor.data.size()}});
  for (const auto& [name, t] : totals_of(file))
    out["totals"][name] = {{"tensors", t.n_tensors}, {"elements", t.n_elements}, {"bytes", t.n_bytes}};
  fmt::print("{}\n", dump_json(out, 1));
}

Result<void> run(const engine::ProgramParams& params) {
  if (params.engine.model_path.empty())
    return Error{ErrorKind::invalid_argument, "no file given: name a GGUF file with -m FILE"};
  SH_ASSIGN(const gguf::File file, gguf::File::open(params.engine.model_path));
  params.tool.prints_json ? print_json(file) : print_text(file);
  return {};
}

}  // namespace

int inspect_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kInspect, arguments, params)) return *status;
  return exit_status(run(params));
}

}  // namespace sh::tools
