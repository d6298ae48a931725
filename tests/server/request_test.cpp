// SPDX-License-Identifier: MIT
// Parsing, routing and wording without a running model.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "chat/chat_template.h"
#include "engine/vocabulary.h"
#include "gguf/gguf.h"
#include "server/access.h"
#include "server/chat_prompt.h"
#include "server/errors.h"
#include "server/field_reader.h"
#include "server/generation_request.h"
#include "server/generation_run.h"
#include "server/router.h"

namespace sh::server {
namespace {

Json parsed(const std::string& text) {
  Result<Json> json = parse_json(text);
  EXPECT_TRUE(json.ok()) << text;
  return json.ok() ? *json : Json::object();
}

const tokenizer::Tokenizer& scribe_tokenizer() {
  static const std::unique_ptr<tokenizer::Tokenizer> made = [] {
    auto file = gguf::File::open(std::string(SH_SOURCE_DIR) + "/models/scribe.gguf");
    auto vocabulary = engine::read_vocabulary(*file);
    auto result = tokenizer::Tokenizer::create(*vocabulary);
    return std::move(result).value();
  }();
  return *made;
}

Result<ParsedRequest> parse(const std::string& body, DialectName dialect = DialectName::native) {
  static const std::vector<int32_t> end_tokens = {1, 5};
  return parse_generation_request(parsed(body), dialect, RequestDefaults{.n_slots = 4, .end_tokens = end_tokens},
                                  scribe_tokenizer());
}
std::string error_of(const std::string& body, DialectName dialect = DialectName::native) {
  const Result<ParsedRequest> result = parse(body, dialect);
  EXPECT_FALSE(result.ok()) << body;
  return result.ok() ? "" : result.error().message;
}

TEST(Errors, EveryKindHasTheStatusThatClientsKnow) {
  const auto status = [](ErrorKind kind) { return api_error(Error{kind, "m"}).status; };
  EXPECT_EQ(status(ErrorKind::invalid_argument), 400);
  EXPECT_EQ(status(ErrorKind::not_found), 404);
  EXPECT_EQ(status(ErrorKind::unsupported), 501);
  EXPECT_EQ(status(ErrorKind::corrupt), 500);
  EXPECT_EQ(status(ErrorKind::io), 500);
  EXPECT_EQ(status(ErrorKind::out_of_memory), 503);
  EXPECT_EQ(status(ErrorKind::context_exceeded), 400);
  EXPECT_EQ(status(ErrorKind::unmet), 422);
  EXPECT_EQ(status(ErrorKind::busy), 503);
  EXPECT_EQ(status(ErrorKind::cancelled), 503);
  ApiError exceeded = api_error(Error{ErrorKind::context_exceeded, "too long"});
  exceeded.n_prompt_tokens = 9;
  exceeded.n_ctx = 8;
  EXPECT_EQ(
      dump_json(error_json(exceeded)),
      R"({"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":8}})");
}

void nothing(Call) {}

TEST(Router, FindsRoutesIdsAndMethods) {
  const Route table[] = {{"GET", "/slots", nothing},
                         {"POST", "/slots/{id}", nothing},
                         {"GET", "/slots/{id}/compaction", nothing},
                         {"POST", "/props", nothing},
                         {"GET", "/props", nothing}};
  EXPECT_EQ(find_route(table, "GET", "/slots").route, &table[0]);
  EXPECT_EQ(find_route(table, "HEAD", "/slots").route, &table[0]);
  const RouteMatch slot = find_route(table, "POST", "/slots/17");
  EXPECT_EQ(slot.route, &table[1]);
  EXPECT_EQ(slot.id, "17");
  const RouteMatch report = find_route(table, "GET", "/slots/3/compaction");
  EXPECT_EQ(report.route, &table[2]);
  EXPECT_EQ(report.id, "3");
  for (const char* unknown :
       {"/", "", "/slot", "/slots/", "/slots/1/2", "/slots/1/compaction/", "/slots//compaction", "/SLOTS"}) {
    const RouteMatch match = find_route(table, "POST", unknown);
    EXPECT_EQ(match.route, nullptr) << unknown;
    EXPECT_EQ(match.allowed, "") << unknown;
  }
  EXPECT_EQ(find_route(table, "DELETE", "/props").allowed, "POST, GET");
}

TEST(Router, NoRouteIsListedTwice) {
  std::set<std::string> seen;
  for (const Route& route : routes())
    EXPECT_TRUE(seen.insert(std::string(route.method) + " " + route.path).second) << route.path;
}

TEST(Http, TargetsAreDecoded) {
  HttpRequest request;
  parse_target("/a%2Fb%zz%?x=1+2&y=%26&x=3&z&=4", request);
  EXPECT_EQ(request.path, "/a/b%zz%");
  EXPECT_EQ(request.query.at("x"), "1 2");
  EXPECT_EQ(request.query.at("y"), "&");
  EXPECT_EQ(request.query.at("z"), "");
  HttpRequest plain;
  parse_target("/x", plain);
  EXPECT_EQ(plain.path, "/x");
  EXPECT_TRUE(plain.query.empty());
}

TEST(Access, KeysComeInTwoHeaders) {
  const std::vector<std::string> keys = {"alpha", "beta"};
  const auto allowed = [&](const char* name, const char* value) {
    return has_valid_key(HttpRequest{.headers = {{name, value}}}, keys);
  };
  EXPECT_TRUE(allowed("authorization", "Bearer alpha"));
  EXPECT_TRUE(allowed("x-api-key", "beta"));
  EXPECT_FALSE(allowed("authorization", "alpha"));
  EXPECT_FALSE(allowed("authorization", "Bearer alph"));
  EXPECT_FALSE(allowed("authorization", "Bearer "));
  EXPECT_FALSE(has_valid_key(HttpRequest{}, keys));
  EXPECT_TRUE(has_valid_key(HttpRequest{}, {}));
}

TEST(Fields, WrongTypesNameTheFieldAndNullIsAbsent) {
  EXPECT_TRUE(
      parse(R"({"temperature": null, "stop": null, "stream": null, "n": null, "grammar": null, "seed": null})")
          .ok());
  const std::vector<std::pair<std::string, std::string>> bad = {
      {R"({"temperature": "hot"})", "temperature"},
      {R"({"top_k": 1.5})", "top_k"},
      {R"({"top_p": 2})", "top_p"},
      {R"({"stream": "yes"})", "stream"},
      {R"({"stream": 1})", "stream"},
      {R"({"n_predict": -2})", "n_predict"},
      {R"({"max_tokens": "5"})", "max_tokens"},
      {R"({"stop": 5})", "stop"},
      {R"({"stop": ["a", 5]})", "stop"},
      {R"({"seed": 1e300})", "seed"},
      {R"({"seed": 18446744073709551615})", "seed"},
      {R"({"stream_options": 3})", "stream_options"},
      {R"({"stream_options": {"include_usage": 1}})", "stream_options.include_usage"},
      {R"({"n": 0})", "n:"},
      {R"({"logit_bias": 3})", "logit_bias"},
      {R"({"logit_bias": [[1]]})", "logit_bias"},
      {R"({"logit_bias": {"99999999": 1}})", "logit_bias"},
      {R"({"logit_bias": [[0, "x"]]})", "logit_bias"},
      {R"({"id_slot": [1]})", "id_slot"},
      {R"({"cache_prompt": {}})", "cache_prompt"},
      {R"({"n_probs": 100000})", "n_probs"},
      {R"({"response_fields": "content"})", "response_fields"}};
  for (const auto& [body, field] : bad) {
    const std::string message = error_of(body);
    EXPECT_NE(message.find(field), std::string::npos) << body << ": " << message;
    EXPECT_NE(message.find("expected"), std::string::npos) << message;
    EXPECT_NE(message.find("got"), std::string::npos) << message;
  }
  EXPECT_NE(error_of(R"({"top_k": 1000000000000})").find("a whole number from -2147483648 to 2147483647"),
            std::string::npos);
  EXPECT_NE(error_of(R"({"min_keep": -1})").find("a whole number of at least 0"), std::string::npos);
  EXPECT_LT(error_of(R"({"temperature": ")" + std::string(5000, 'x') + "\"}").size(), 200u)
      << "what a client sends is not echoed in full";
}

TEST(Fields, ValuesReachTheRequest) {
  const ParsedRequest r = *parse(
      R"({"n_predict": 7.0, "temperature": 0, "top_k": 3, "seed": -1, "stop": "END", "cache_prompt": false, "id_slot": 2,
    "ignore_eos": true, "n_probs": 4, "logit_bias": [[5, 1.5], [6, false], ["7", -2]], "stream": true, "stream_options": {"include_usage": true},
    "n_cmpl": 2, "return_progress": true, "unknown_field": {"is": "ignored"}})");
  EXPECT_EQ(r.generation.n_predict, 7);
  EXPECT_EQ(r.generation.sampling.temperature, 0.0f);
  EXPECT_EQ(r.generation.sampling.top_k, 3);
  EXPECT_EQ(r.generation.sampling.seed, sampling::kRandomSeed);
  EXPECT_EQ(r.generation.stop, std::vector<std::string>{"END"});
  EXPECT_FALSE(r.generation.cache_prompt);
  EXPECT_EQ(r.generation.id_slot, 2);
  EXPECT_EQ(r.generation.sampling.banned, (std::vector<int32_t>{1, 5}));
  EXPECT_EQ(r.generation.n_probs, 4);
  ASSERT_EQ(r.generation.sampling.logit_bias.size(), 3u);
  EXPECT_EQ(r.generation.sampling.logit_bias[0], (std::pair<int32_t, float>{5, 1.5f}));
  EXPECT_TRUE(std::isinf(r.generation.sampling.logit_bias[1].second));
  EXPECT_EQ(r.generation.sampling.logit_bias[2].first, 7);
  EXPECT_TRUE(r.is_stream);
  EXPECT_TRUE(r.includes_usage);
  EXPECT_TRUE(r.returns_progress);
  EXPECT_EQ(r.n_choices, 2);
  EXPECT_EQ(parse(R"({"seed": 42})")->generation.sampling.seed, 42u);
}

TEST(Fields, LogprobsOfEachDialect) {
  EXPECT_EQ(parse("{}")->n_top_probs, -1);
  EXPECT_EQ(parse(R"({"n_probs": 0})")->n_top_probs, -1);
  EXPECT_EQ(parse(R"({"logprobs": 2})", DialectName::openai_completion)->n_top_probs, 2);
  const ParsedRequest chat = *parse(R"({"logprobs": true})", DialectName::openai_chat);
  EXPECT_EQ(chat.n_top_probs, 0);
  EXPECT_EQ(chat.generation.n_probs, 1) << "the taken token's own probability is needed";
  EXPECT_EQ(parse(R"({"logprobs": true, "top_logprobs": 5})", DialectName::openai_chat)->n_top_probs, 5);
  EXPECT_NE(error_of(R"({"top_logprobs": 5})", DialectName::openai_chat).find("logprobs"), std::string::npos);
  EXPECT_NE(error_of(R"({"logprobs": 5})", DialectName::openai_chat).find("true or false"), std::string::npos);
}

TEST(Fields, WhatWouldChangeTheResultIsRefusedAndWhatWouldNotIsAccepted) {
  for (const char* body :
       {R"({"grammar": "root ::= x"})", R"({"json_schema": {"type": "object"}})",
        R"({"response_format": {"type": "json_object"}})", R"({"mirostat": 2})", R"({"dry_multiplier": 0.8})",
        R"({"xtc_probability": 0.5})", R"({"samplers": ["top_k"]})", R"({"lora": [{"id": 0, "scale": 1}]})",
        R"({"t_max_predict_ms": 5})", R"({"echo": true})", R"({"suffix": "x"})", R"({"response_format": {}})",
        R"({"response_format": "text"})"}) {
    const Result<ParsedRequest> result = parse(body);
    ASSERT_FALSE(result.ok()) << body;
    EXPECT_EQ(result.error().kind, ErrorKind::unsupported) << body;
  }
  EXPECT_TRUE(
      parse(
          R"({"grammar": "", "response_format": {"type": "text"}, "mirostat": 0, "dry_multiplier": 0.0, "xtc_probability": 0,
    "samplers": [], "lora": [], "echo": false, "top_n_sigma": -1, "t_max_predict_ms": 0, "n_discard": 5, "user": "me", "n_cache_reuse": 256})")
          .ok());
  EXPECT_NE(error_of(R"({"n": 5})").find("4 slots"), std::string::npos);
}

TEST(Prompts, AllFormsAndTheirErrors) {
  const tokenizer::Tokenizer& t = scribe_tokenizer();
  using Prompts = std::vector<std::vector<int32_t>>;
  const auto prompts = [&](const std::string& body) { return parse_prompts(parsed(body), t); };
  const std::vector<int32_t> text = t.encode("hello", {.add_special = true, .parse_special = true});
  EXPECT_EQ(*prompts(R"({"prompt": "hello"})"), Prompts(1, text));
  EXPECT_EQ(*prompts(R"({"prompt": ["hello", "hello"]})"), (Prompts{text, text}));
  EXPECT_EQ(*prompts(R"({"prompt": [5, 6]})"), (Prompts{{5, 6}}));
  EXPECT_EQ(*prompts(R"({"prompt": [[5, 6], "hello"]})"), (Prompts{{5, 6}, text}));
  EXPECT_EQ(*prompts(R"({"prompt": {"prompt_string": "hello"}})"), Prompts(1, text));
  std::vector<int32_t> mixed = {7};
  const std::vector<int32_t> rest = t.encode("hello", {.add_special = false, .parse_special = true});
  mixed.insert(mixed.end(), rest.begin(), rest.end());
  EXPECT_EQ(*prompts(R"({"prompt": [7, "hello"]})"), Prompts(1, mixed));
  for (const char* body : {R"({})", R"({"prompt": null})", R"({"prompt": 5})", R"({"prompt": []})",
                           R"({"prompt": [true]})", R"({"prompt": [[1.5]]})", R"({"prompt": [-1]})",
                           R"({"prompt": [99999999]})", R"({"prompt": [5, 18446744073709551615]})",
                           R"({"prompt": {"x": 1}})", R"({"prompt": [5, {"prompt_string": "x"}]})",
                           R"({"prompt": {"prompt_string": "x", "multimodal_data": ["y"]}})"})
    EXPECT_FALSE(prompts(body).ok()) << body;
  EXPECT_FALSE(prompts("{\"prompt\": [" +
                       [] {
                         std::string list = "\"x\"";
                         for (int i = 0; i < 300; ++i) list += ",\"x\"";
                         return list;
                       }() +
                       "]}")
                   .ok());
}

class ChatPrompt : public testing::Test {
 protected:
  Result<std::string> render(const std::string& body) {
    static const auto chatml = chat::ChatTemplate::parse(chat::kChatMlTemplate);
    return render_chat(parsed(body), **chatml, scribe_tokenizer());
  }
};

TEST_F(ChatPrompt, TrailingAssistantMessagesAreContinued) {
  const std::string open = *render(R"({"messages": [{"role": "user", "content": "Hi"}]})");
  EXPECT_TRUE(open.ends_with("assistant\n")) << open;
  const std::string begun =
      *render(R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]})");
  EXPECT_EQ(begun, open + "Well, ");
  const std::string closed =
      *render(R"({"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": false})");
  EXPECT_EQ(open.find(closed), 0u);
  EXPECT_LT(closed.size(), open.size());
  EXPECT_EQ(*render(R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]})"), open);
  EXPECT_EQ(
      *render(R"({"messages": [{"role": "developer", "content": "Be"}, {"role": "user", "content": "Hi"}]})"),
      *render(R"({"messages": [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]})"));
}

TEST_F(ChatPrompt, BadMessagesAreNamed) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {R"({})", "messages"},
      {R"({"messages": []})", "messages"},
      {R"({"messages": "hi"})", "messages"},
      {R"({"messages": [5]})", "messages[0]"},
      {R"({"messages": [{"content": "x"}]})", "role"},
      {R"({"messages": [{"role": "user"}]})", "content"},
      {R"({"messages": [{"role": "user", "content": 5}]})", "content"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})", "text"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]})", "image_url"},
      {R"({"messages": [{"role": "user", "content": "x"}], "tools": {}})", "tools"},
      {R"({"messages": [{"role": "user", "content": "x"}], "tools": [], "tool_choice": "required"})",
       "tool_choice"},
      {R"({"messages": [{"role": "user", "content": "x"}], "tools": [], "tool_choice": 5})", "tool_choice"},
      {R"({"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": 5})", "chat_template_kwargs"},
      {R"({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": true, "continue_final_message": true})",
       "both"},
      {R"({"messages": [{"role": "user", "content": "x"}], "continue_final_message": true})",
       "continue_final_message"}};
  for (const auto& [body, what] : bad) {
    const Result<std::string> result = render(body);
    ASSERT_FALSE(result.ok()) << body;
    EXPECT_NE(result.error().message.find(what), std::string::npos) << body << ": " << result.error().message;
  }
}

TEST(Wording, RecordsAreEventStreamLines) {
  EXPECT_EQ(sse_text({Json{{"a", "x\ny"}}, Json(1)}), "data: {\"a\":\"x\\ny\"}\n\ndata: 1\n\n");
  EXPECT_EQ(sse_text({}), "");
}

TEST(Wording, TimingsAreFiniteWithoutTokens) {
  const Json empty = timings_json(engine::Timings{});
  for (const char* name : {"cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second",
                           "predicted_n", "predicted_ms", "predicted_per_token_ms", "predicted_per_second"}) {
    ASSERT_TRUE(empty.contains(name)) << name;
    EXPECT_EQ(empty[name].get<double>(), 0.0) << name;
  }
}

TEST(Wording, UsageCountsAPromptOnceForAllItsChoices) {
  std::vector<Choice> choices(3);
  for (size_t i = 0; i < 3; ++i) {
    choices[i].prompt_index = i < 2 ? 0 : 1;
    choices[i].request.prompt.assign(10, 0);
    choices[i].last.timings = {.cache_n = 4, .prompt_n = 6, .predicted_n = 5};
  }
  EXPECT_EQ(
      dump_json(usage_json(choices)),
      R"({"completion_tokens":15,"prompt_tokens":20,"total_tokens":35,"prompt_tokens_details":{"cached_tokens":8}})");
}

}  // namespace
}  // namespace sh::server
