// SPDX-License-Identifier: MIT
#include "server/generation_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>

#include "server/field_reader.h"

namespace sh::server {
namespace {

using tokenizer::Tokenizer;

constexpr size_t kMaxStops = 256;
constexpr size_t kMaxPrompts = 256;
constexpr int32_t kMaxProbs = 1000;

/// A field that exists in llama.cpp or OpenAI's API, and the values at which leaving it out changes nothing.
struct UnsupportedField {
  const char* name;
  bool (*is_harmless)(const Json& value);
};
bool is_empty(const Json& v) {
  return (v.is_string() && v.get_ref<const std::string&>().empty()) || (v.is_structured() && v.empty());
}
bool is_zero(const Json& v) {
  return v.is_number() && v.get<double>() == 0;
}
bool is_not_positive(const Json& v) {
  return v.is_number() && v.get<double>() <= 0;
}
bool is_negative(const Json& v) {
  return v.is_number() && v.get<double>() < 0;
}
bool is_false(const Json& v) {
  return v.is_boolean() && !v.get<bool>();
}
bool is_one(const Json& v) {
  return v.is_number() && v.get<double>() == 1;
}
bool is_plain_text(const Json& v) {
  return v.is_object() && v.contains("type") && v["type"] == "text";
}

constexpr UnsupportedField kUnsupported[] = {
    {"grammar", is_empty},
    {"json_schema", [](const Json&) { return false; }},
    {"response_format", is_plain_text},
    {"functions", is_empty},
    {"dynatemp_range", is_not_positive},
    {"xtc_probability", is_not_positive},
    {"top_n_sigma", is_not_positive},
    {"dry_multiplier", is_zero},
    {"mirostat", is_zero},
    {"adaptive_target", is_negative},
    {"samplers", is_empty},
    {"post_sampling_probs", is_false},
    {"t_max_predict_ms", is_not_positive},
    {"n_indent", is_zero},
    {"lora", is_empty},
    {"echo", is_false},
    {"suffix", is_empty},
    {"best_of", is_one},
    {"thinking_budget_tokens", is_negative},
};

void refuse_unsupported(FieldReader& fields) {
  for (const UnsupportedField& field : kUnsupported) {
    const Json* value = fields.find(field.name);
    if (value == nullptr || field.is_harmless(*value)) continue;
    fields.fail(Error{ErrorKind::unsupported, fmt::format("'{}' is not supported yet; leave it out", field.name)});
  }
}

void read_sampling(FieldReader& fields, sampling::SamplingParams& s) {
  constexpr double kMax = std::numeric_limits<float>::max();
  fields.read("temperature", s.temperature, -kMax, kMax);
  fields.read("top_k", s.top_k, std::numeric_limits<int32_t>::min());
  fields.read("top_p", s.top_p, 0, 1);
  fields.read("min_p", s.min_p, 0, 1);
  fields.read("typical_p", s.typical_p, 0, 1);
  fields.read("repeat_last_n", s.repeat_last_n, -1);
  fields.read("repeat_penalty", s.repeat_penalty, 0, kMax);
  fields.read("presence_penalty", s.presence_penalty, -kMax, kMax);
  fields.read("frequency_penalty", s.frequency_penalty, -kMax, kMax);
  fields.read("min_keep", s.min_keep, 0);
  int64_t seed = -1;
  fields.read("seed", seed, std::numeric_limits<int64_t>::min());
  if (fields.find("seed") != nullptr) s.seed = static_cast<uint32_t>(seed);  // -1 is the random seed
}

/// `false` bans; a number is added.
std::optional<float> bias_value(const Json& value) {
  if (value.is_boolean() && !value.get<bool>()) return -std::numeric_limits<float>::infinity();
  if (!value.is_number()) return std::nullopt;
  const auto bias = value.get<float>();
  return std::isfinite(bias) ? std::optional<float>(bias) : std::nullopt;
}

/// The tokens that a key of logit_bias means: an id, an id as text, or a text, each of whose tokens gets the bias.
void add_bias(FieldReader& fields, const Json& key, const Json& value, const Tokenizer& tokenizer,
              std::vector<std::pair<int32_t, float>>& out) {
  const std::optional<float> bias = bias_value(value);
  if (!bias) return fields.fail("logit_bias", "a number or false as the bias", value);
  int64_t id = -1;
  if (key.is_string()) {
    const auto& text = key.get_ref<const std::string&>();
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), id);
    if (code != std::errc() || end != text.data() + text.size()) {
      for (const int32_t token : tokenizer.encode(text, {.add_special = false, .parse_special = true}))
        out.emplace_back(token, *bias);
      return;
    }
  } else if (key.is_number_integer()) {
    id = key.get<int64_t>();
  } else {
    return fields.fail("logit_bias", "a token id or a text as the key", key);
  }
  if (id < 0 || id >= tokenizer.n_vocab())
    return fields.fail("logit_bias", fmt::format("token ids from 0 to {}", tokenizer.n_vocab() - 1), Json(id));
  out.emplace_back(static_cast<int32_t>(id), *bias);
}

void read_logit_bias(FieldReader& fields, const Tokenizer& tokenizer,
                     std::vector<std::pair<int32_t, float>>& out) {
  const Json* bias = fields.find("logit_bias");
  if (bias == nullptr) return;
  if (bias->is_object()) {
    for (const auto& [key, value] : bias->items()) add_bias(fields, Json(key), value, tokenizer, out);
  } else if (bias->is_array()) {
    for (const Json& pair : *bias) {
      if (!pair.is_array() || pair.size() != 2) return fields.fail("logit_bias", "pairs of token and bias", pair);
      add_bias(fields, pair[0], pair[1], tokenizer, out);
    }
  } else {
    fields.fail("logit_bias", "an object or a list of pairs", *bias);
  }
}

void read_probs(FieldReader& fields, DialectName dialect, ParsedRequest& out) {
  if (dialect == DialectName::openai_chat) {
    bool has_logprobs = false;
    int32_t n_top = 0;
    fields.read("logprobs", has_logprobs);
    fields.read("top_logprobs", n_top, 0, kMaxProbs);
    if (n_top > 0 && !has_logprobs)
      fields.fail(Error{ErrorKind::invalid_argument, "top_logprobs: needs logprobs to be true"});
    if (has_logprobs) out.n_top_probs = n_top;
  } else {
    int32_t n = -1;
    fields.read("logprobs", n, 0, kMaxProbs);
    fields.read("n_probs", n, 0, kMaxProbs);
    const bool wants_none = n < 0 || (n == 0 && dialect == DialectName::native);
    if (!wants_none) out.n_top_probs = n;
  }
  // The engine gives the taken token's probability together with at least one alternative.
  if (out.n_top_probs >= 0) out.generation.n_probs = std::max(1, out.n_top_probs);
}

bool is_token_id(const Json& value) {
  return value.is_number_integer();
}
bool is_prompt_part(const Json& value) {
  return value.is_string() || is_token_id(value);
}

Result<void> add_ids(const Json& value, const Tokenizer& tokenizer, std::vector<int32_t>& out) {
  const bool is_inside =
      value.is_number_unsigned() ? value.get<uint64_t>() < static_cast<uint64_t>(tokenizer.n_vocab()) : false;
  if (!is_inside)
    return Error{ErrorKind::invalid_argument, fmt::format("prompt: expected token ids from 0 to {}, got {}",
                                                          tokenizer.n_vocab() - 1, dump_json(value))};
  out.push_back(value.get<int32_t>());
  return {};
}

/// One prompt. The vocabulary's start token goes before a text that opens the prompt, not before ids.
Result<std::vector<int32_t>> parse_prompt(const Json& value, const Tokenizer& tokenizer) {
  const auto encode = [&](const Json& text, bool is_first) {
    return tokenizer.encode(text.get_ref<const std::string&>(), {.add_special = is_first, .parse_special = true});
  };
  if (value.is_string()) return encode(value, true);
  if (value.is_object()) {
    const auto text = value.find("prompt_string");
    if (text == value.end() || !text->is_string())
      return Error{ErrorKind::invalid_argument, "prompt: expected 'prompt_string' in the object"};
    if (const auto media = value.find("multimodal_data");
        media != value.end() && !is_empty(*media) && !media->is_null())
      return Error{ErrorKind::unsupported, "prompt: multimodal_data is not supported; send text"};
    return encode(*text, true);
  }
  std::vector<int32_t> ids;
  bool is_first = true;
  for (const Json& part : value) {
    if (part.is_string()) {
      const std::vector<int32_t> more = encode(part, is_first);
      ids.insert(ids.end(), more.begin(), more.end());
    } else {
      SH_RETURN_IF_ERROR(add_ids(part, tokenizer, ids));
    }
    is_first = false;
  }
  return ids;
}

}  // namespace

Result<ParsedRequest> parse_generation_request(const Json& body, DialectName dialect,
                                               const RequestDefaults& defaults, const Tokenizer& tokenizer) {
  FieldReader fields(body);
  ParsedRequest out;
  engine::GenerationRequest& g = out.generation;
  g.sampling = defaults.sampling;
  g.n_predict = defaults.n_predict;
  g.ignore_eos = defaults.ignore_eos;
  g.cache_prompt = defaults.cache_prompt;

  refuse_unsupported(fields);
  read_sampling(fields, g.sampling);
  read_logit_bias(fields, tokenizer, g.sampling.logit_bias);
  read_probs(fields, dialect, out);
  for (const char* name : {"n_predict", "max_tokens", "max_completion_tokens"}) fields.read(name, g.n_predict, -1);
  fields.read("n_keep", g.n_keep, -1);
  fields.read_strings("stop", g.stop, true, kMaxStops);
  std::erase(g.stop, "");
  fields.read("ignore_eos", g.ignore_eos);
  if (g.ignore_eos) g.sampling.banned.assign(defaults.end_tokens.begin(), defaults.end_tokens.end());
  fields.read("cache_prompt", g.cache_prompt);
  fields.read("id_slot", g.id_slot, -1);

  fields.read("stream", out.is_stream);
  if (const Json* options = fields.find("stream_options")) {
    FieldReader inner(*options, "stream_options.");
    inner.read("include_usage", out.includes_usage);
    if (const Result<void> result = inner.result(); !result.ok()) fields.fail(result.error());
  }
  fields.read("timings_per_token", out.has_timings_per_token);
  fields.read("return_progress", out.returns_progress);
  fields.read("return_tokens", out.returns_tokens);
  fields.read_strings("response_fields", out.response_fields, false, kMaxStops);
  fields.read("sse_ping_interval", out.ping_seconds, -1);
  for (const char* name : {"n", "n_cmpl"}) fields.read(name, out.n_choices, 1);
  if (out.n_choices > defaults.n_slots)
    fields.fail(Error{ErrorKind::invalid_argument,
                      fmt::format("n: {} choices are more than the {} slots of this server (-np)", out.n_choices,
                                  defaults.n_slots)});
  SH_RETURN_IF_ERROR(fields.result());
  return out;
}

Result<std::vector<std::vector<int32_t>>> parse_prompts(const Json& body, const Tokenizer& tokenizer) {
  const auto found = body.find("prompt");
  if (found == body.end() || found->is_null())
    return Error{ErrorKind::invalid_argument, "prompt: the field is missing"};
  const Json& prompt = *found;
  std::vector<std::vector<int32_t>> prompts;
  const bool has_ids = prompt.is_array() && std::any_of(prompt.begin(), prompt.end(), is_token_id);
  const bool is_one = prompt.is_string() || prompt.is_object() || has_ids;
  const auto is_wrong = [&](const Json& value) {
    if (value.is_array()) return !std::all_of(value.begin(), value.end(), is_prompt_part);
    return !value.is_string() && !value.is_object();
  };
  if ((is_one && is_wrong(prompt)) ||
      (!is_one && (!prompt.is_array() || std::any_of(prompt.begin(), prompt.end(), is_wrong))))
    return Error{ErrorKind::invalid_argument,
                 "prompt: expected a string, token ids, a list that mixes both, or a list of those"};
  if (!is_one && prompt.size() > kMaxPrompts)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("prompt: expected at most {} prompts, got {}", kMaxPrompts, prompt.size())};
  if (is_one) {
    SH_ASSIGN(std::vector<int32_t> ids, parse_prompt(prompt, tokenizer));
    prompts.push_back(std::move(ids));
    return prompts;
  }
  for (const Json& part : prompt) {
    SH_ASSIGN(std::vector<int32_t> ids, parse_prompt(part, tokenizer));
    prompts.push_back(std::move(ids));
  }
  if (prompts.empty()) return Error{ErrorKind::invalid_argument, "prompt: the list is empty"};
  return prompts;
}

Json generation_settings(const engine::GenerationRequest& request) {
  const sampling::SamplingParams& s = request.sampling;
  Json bias = Json::array();
  for (const auto& [id, value] : s.logit_bias)
    bias.push_back({{"token", id}, {"bias", std::isfinite(value) ? Json(value) : Json(false)}});
  return Json{{"seed", s.seed},
              {"temperature", s.temperature},
              {"top_k", s.top_k},
              {"top_p", s.top_p},
              {"min_p", s.min_p},
              {"typical_p", s.typical_p},
              {"repeat_last_n", s.repeat_last_n},
              {"repeat_penalty", s.repeat_penalty},
              {"presence_penalty", s.presence_penalty},
              {"frequency_penalty", s.frequency_penalty},
              {"min_keep", s.min_keep},
              {"n_probs", request.n_probs},
              {"logit_bias", std::move(bias)},
              {"stop", request.stop},
              {"n_predict", request.n_predict},
              {"max_tokens", request.n_predict},
              {"n_keep", request.n_keep},
              {"ignore_eos", request.ignore_eos}};
}

}  // namespace sh::server
