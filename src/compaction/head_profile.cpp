// SPDX-License-Identifier: MIT
#include "compaction/head_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/json.h"

namespace sh::compaction {
namespace {

constexpr std::string_view kFormat = "shorthand-head-profile";
constexpr int64_t kVersion = 1;
constexpr int32_t kMaxIndex = 9999;  // of layers and heads: bounds what a bad file can allocate
constexpr double kSumTolerance = 1e-3;
constexpr double kMaxDocuments = 1e9;
constexpr float kMissing = -1;
constexpr std::string_view kFields[] = {"format", "version", "model", "method", "ratio", "documents", "shares"};

// The shortest decimal that reads back as the same float; a float as a double would print 17 digits.
double shortest_decimal(float value) {
  const std::string text = fmt::format("{}", value);
  double result = 0;
  std::from_chars(text.data(), text.data() + text.size(), result);
  return result;
}

std::string shown(const Json& value) {
  std::string text = dump_json(value);
  constexpr size_t kMostShown = 40;
  return text.size() <= kMostShown ? text : fmt::format("{}…", text.substr(0, kMostShown));
}

// A number without sign and without leading zeros, at most kMaxIndex. Moves `text` past it.
std::optional<int32_t> take_index(std::string_view& text) {
  int32_t value = 0;
  size_t n_digits = 0;
  while (n_digits < text.size() && text[n_digits] >= '0' && text[n_digits] <= '9' && value <= kMaxIndex)
    value = value * 10 + (text[n_digits++] - '0');
  if (n_digits == 0 || value > kMaxIndex || (text[0] == '0' && n_digits > 1)) return std::nullopt;
  text.remove_prefix(n_digits);
  return value;
}

std::optional<HeadId> parse_head_id(std::string_view text) {
  if (!text.starts_with('L')) return std::nullopt;
  text.remove_prefix(1);
  const std::optional<int32_t> layer = take_index(text);
  if (!layer || !text.starts_with('H')) return std::nullopt;
  text.remove_prefix(1);
  const std::optional<int32_t> head = take_index(text);
  if (!head || !text.empty()) return std::nullopt;
  return HeadId{*layer, *head};
}

float& share_at(std::vector<std::vector<float>>& shares, HeadId id, float missing) {
  const size_t layer = static_cast<size_t>(id.layer), head = static_cast<size_t>(id.head);
  if (shares.size() <= layer) shares.resize(layer + 1);
  if (shares[layer].size() <= head) shares[layer].resize(head + 1, missing);
  return shares[layer][head];
}

double sum_of(const std::vector<std::vector<float>>& shares) {
  double sum = 0;
  for (const std::vector<float>& layer : shares)
    for (const float share : layer) sum += share;
  return sum;
}

class Reader {
 public:
  Reader(const Json& json, std::string_view where) : json_(json), where_(where) {}
  Result<HeadProfile> read() const;

 private:
  Error error(const std::string& what) const {
    return {ErrorKind::invalid_argument,
            fmt::format("head profile {}: {}; write one with 'shorthand profile'", where_, what)};
  }
  Error unexpected(std::string_view field, std::string_view expected) const {
    const auto found = json_.find(field);
    return error(fmt::format("field '{}' should be {}, found {}", field, expected,
                             found == json_.end() ? "nothing" : shown(*found)));
  }
  Result<void> check_fields() const;
  Result<std::string> text(std::string_view field) const;
  Result<double> number(std::string_view field, double lowest, double highest) const;
  Result<std::vector<std::vector<float>>> shares() const;
  Result<void> check_complete(const std::vector<std::vector<float>>& shares) const;

  const Json& json_;
  std::string_view where_;
};

Result<HeadProfile> Reader::read() const {
  SH_RETURN_IF_ERROR(check_fields());
  HeadProfile profile;
  SH_ASSIGN(profile.model, text("model"));
  SH_ASSIGN(profile.method, text("method"));
  SH_ASSIGN(profile.ratio, number("ratio", 1, 1e6));
  SH_ASSIGN(const double n_documents, number("documents", 1, kMaxDocuments));
  if (n_documents != std::floor(n_documents)) return unexpected("documents", "a whole number");
  profile.n_documents = static_cast<int64_t>(n_documents);
  SH_ASSIGN(profile.shares, shares());
  return profile;
}

Result<void> Reader::check_fields() const {
  if (!json_.is_object()) return error(fmt::format("expected a JSON object, found {}", shown(json_)));
  const auto format = json_.find("format");
  if (format == json_.end() || *format != kFormat) return unexpected("format", fmt::format("\"{}\"", kFormat));
  const auto version = json_.find("version");
  if (version == json_.end() || *version != kVersion)
    return unexpected("version", fmt::format("{}, the only one that this program knows", kVersion));
  for (const auto& item : json_.items())
    if (std::find(std::begin(kFields), std::end(kFields), item.key()) == std::end(kFields))
      return error(fmt::format("unknown field {}; expected {}", shown(item.key()), fmt::join(kFields, ", ")));
  return {};
}

Result<std::string> Reader::text(std::string_view field) const {
  const auto found = json_.find(field);
  if (found == json_.end() || !found->is_string()) return unexpected(field, "a string");
  return found->get<std::string>();
}

Result<double> Reader::number(std::string_view field, double lowest, double highest) const {
  const auto found = json_.find(field);
  if (found != json_.end() && found->is_number()) {
    const double value = found->get<double>();
    if (value >= lowest && value <= highest) return value;
  }
  return unexpected(field, fmt::format("a number from {} to {}", lowest, highest));
}

Result<std::vector<std::vector<float>>> Reader::shares() const {
  const auto found = json_.find("shares");
  if (found == json_.end() || !found->is_object() || found->empty())
    return unexpected("shares", "an object such as {\"L0H0\": 0.25, …}");
  std::vector<std::vector<float>> shares;
  for (const auto& item : found->items()) {
    const std::optional<HeadId> id = parse_head_id(item.key());
    if (!id)
      return error(
          fmt::format("{} in shares is not the name of a head; expected a layer and a KV head such as "
                      "L0H0, with no leading zeros and each at most {}",
                      shown(item.key()), kMaxIndex));
    const Json& value = item.value();
    if (!value.is_number() || !(value.get<double>() >= 0) || !(value.get<double>() <= 1))
      return error(fmt::format("share {} should be a number from 0 to 1, found {}", item.key(), shown(value)));
    share_at(shares, *id, kMissing) = value.get<float>();
  }
  SH_RETURN_IF_ERROR(check_complete(shares));
  if (const double sum = sum_of(shares); std::fabs(sum - 1) > kSumTolerance)
    return error(fmt::format("the shares of all heads should sum to 1, found {:.6g}", sum));
  return shares;
}

Result<void> Reader::check_complete(const std::vector<std::vector<float>>& shares) const {
  for (size_t layer = 0; layer < shares.size(); ++layer)
    for (size_t head = 0; head < shares[layer].size(); ++head)
      if (shares[layer][head] == kMissing)
        return error(fmt::format("shares lack {}, but have a later head of that layer",
                                 name_of(HeadId{static_cast<int32_t>(layer), static_cast<int32_t>(head)})));
  return {};
}

bool has_same_heads(const HeadProfile& a, const HeadProfile& b) {
  return std::equal(a.shares.begin(), a.shares.end(), b.shares.begin(), b.shares.end(),
                    [](const auto& x, const auto& y) { return x.size() == y.size(); });
}

}  // namespace

std::string name_of(HeadId id) {
  return fmt::format("L{}H{}", id.layer, id.head);
}

std::string format_head_profile(const HeadProfile& profile) {
  Json shares = Json::object();
  for (size_t layer = 0; layer < profile.shares.size(); ++layer)
    for (size_t head = 0; head < profile.shares[layer].size(); ++head)
      shares[name_of(HeadId{static_cast<int32_t>(layer), static_cast<int32_t>(head)})] =
          shortest_decimal(profile.shares[layer][head]);
  const Json json = {{"format", kFormat},          {"version", kVersion},    {"model", profile.model},
                     {"method", profile.method},   {"ratio", profile.ratio}, {"documents", profile.n_documents},
                     {"shares", std::move(shares)}};
  return dump_json(json, 2) + "\n";
}

Result<HeadProfile> parse_head_profile(std::string_view text, std::string_view where) {
  const Result<Json> json = parse_json(text);
  if (!json.ok()) return Error{json.error().kind, fmt::format("head profile {}: {}", where, json.error().message)};
  return Reader(json.value(), where).read();
}

std::vector<std::vector<float>> shares_of(std::span<const HeadId> heads, std::span<const int64_t> kept_rows) {
  SH_CHECK(heads.size() == kept_rows.size(), "one count of rows a head");
  double total = 0;
  for (const int64_t n : kept_rows) total += static_cast<double>(n);
  std::vector<std::vector<float>> shares;
  for (size_t i = 0; i < heads.size(); ++i)
    share_at(shares, heads[i], 0) = static_cast<float>(total > 0 ? static_cast<double>(kept_rows[i]) / total
                                                                 : 1.0 / static_cast<double>(heads.size()));
  return shares;
}

Result<HeadProfile> average(std::span<const HeadProfile> profiles) {
  if (profiles.empty()) return Error{ErrorKind::invalid_argument, "average of head profiles: there are none"};
  HeadProfile result = profiles[0];
  std::vector<std::vector<double>> sums;
  for (const std::vector<float>& layer : result.shares) sums.emplace_back(layer.size(), 0.0);
  result.n_documents = 0;
  double ratios = 0;
  for (const HeadProfile& profile : profiles) {
    if (profile.model != result.model || profile.method != result.method || !has_same_heads(profile, result))
      return Error{ErrorKind::invalid_argument,
                   fmt::format("average of head profiles: one is of '{}' with method '{}', another of '{}' with "
                               "'{}'; they must agree in model, method and heads",
                               result.model, result.method, profile.model, profile.method)};
    SH_CHECK(profile.n_documents >= 1, "a profile is of at least one document");
    const double weight = static_cast<double>(profile.n_documents);
    result.n_documents += profile.n_documents;
    ratios += weight * profile.ratio;
    for (size_t layer = 0; layer < sums.size(); ++layer)
      for (size_t head = 0; head < sums[layer].size(); ++head)
        sums[layer][head] += weight * static_cast<double>(profile.shares[layer][head]);
  }
  const double n_documents = static_cast<double>(result.n_documents);
  result.ratio = ratios / n_documents;
  for (size_t layer = 0; layer < sums.size(); ++layer)
    for (size_t head = 0; head < sums[layer].size(); ++head)
      result.shares[layer][head] = static_cast<float>(sums[layer][head] / n_documents);
  return result;
}

Result<std::vector<float>> shares_for(const HeadProfile& profile, std::string_view model,
                                      std::span<const HeadId> heads) {
  if (profile.model != model)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("head profile: made for model '{}', but the model loaded is '{}'; make one for it with "
                    "'shorthand profile'",
                    profile.model, model)};
  std::vector<std::vector<float>> left = profile.shares;
  std::vector<float> result;
  for (const HeadId id : heads) {
    const size_t layer = static_cast<size_t>(id.layer), head = static_cast<size_t>(id.head);
    if (layer >= left.size() || head >= left[layer].size())
      return Error{
          ErrorKind::invalid_argument,
          fmt::format("head profile of '{}': no share for {}, which is compacted; make the profile with the "
                      "options that it is used with",
                      model, name_of(id))};
    result.push_back(left[layer][head]);
    left[layer][head] = 0;
  }
  for (size_t layer = 0; layer < left.size(); ++layer)
    for (size_t head = 0; head < left[layer].size(); ++head)
      if (left[layer][head] > 0)
        return Error{ErrorKind::invalid_argument,
                     fmt::format("head profile of '{}': a share of {} for {}, which is not compacted; make the "
                                 "profile with the options that it is used with",
                                 model, left[layer][head],
                                 name_of(HeadId{static_cast<int32_t>(layer), static_cast<int32_t>(head)}))};
  return result;
}

}  // namespace sh::compaction
