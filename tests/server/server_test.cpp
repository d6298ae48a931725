// SPDX-License-Identifier: MIT
// The whole server over HTTP: dialects, limits, streams, access, information.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "server/running_server.h"

namespace sh::server {
namespace {

using namespace std::chrono_literals;

/// One server for all tests that need nothing special.
class Server_ : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = std::make_unique<RunningServer>();
    server_->load();
  }
  static void TearDownTestSuite() { server_.reset(); }
  static RunningServer& server() { return *server_; }

  static Json chat_body(const std::string& text, const Json& extra = Json::object()) {
    Json body = {{"messages", Json::array({message("user", text)})}, {"max_tokens", 24}};
    body.update(extra);
    return body;
  }
  /// Waits until no request runs; a client that hung up is noticed within a step.
  static bool becomes_idle() {
    for (int i = 0; i < 600; ++i) {
      const auto totals = server().scheduler().totals();
      if (totals.requests_processing == 0 && totals.requests_deferred == 0) return true;
      std::this_thread::sleep_for(50ms);
    }
    return false;
  }

 private:
  static std::unique_ptr<RunningServer> server_;
};
std::unique_ptr<RunningServer> Server_::server_;

TEST(ServerStart, AnswersUnavailableUntilTheModelIsThere) {
  RunningServer server;
  for (const char* path : {"/health", "/v1/models", "/props", "/slots", "/metrics"}) {
    const ClientResponse response = server.get(path);
    EXPECT_EQ(response.status, 503) << path;
    EXPECT_EQ(response.error_type(), "unavailable_error");
  }
  EXPECT_EQ(server.post("/v1/chat/completions", Json::object()).status, 503);
  EXPECT_EQ(server.get("/nowhere").status, 404);
  server.load();
  EXPECT_EQ(server.get("/health").json(), (Json{{"status", "ok"}}));
}

TEST_F(Server_, UnknownPathsAndMethodsAnswerInJson) {
  const ClientResponse unknown = server().get("/v1/models/some-id");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(unknown.error_type(), "not_found_error");
  EXPECT_EQ(unknown.json()["error"]["code"], 404);
  EXPECT_EQ(server().get("/v1/chat/completions").status, 405);
  EXPECT_EQ(server().post("/health", Json::object()).status, 405);
}

TEST_F(Server_, MalformedBodiesAreRefusedAndTheNextRequestIsServed) {
  for (const char* path : {"/completion", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize",
                           "/apply-template", "/compact"})
    for (const std::string& body :
         {std::string("{"), std::string("[1,2"), std::string("nonsense"), std::string("[]"), std::string("5"),
          std::string("{\"a\":}"), std::string(100000, '['), std::string("{\"prompt\": \"\\ud800\"}"),
          std::string("\xff\xfe{}")}) {
      const ClientResponse response = server().post_text(path, body);
      EXPECT_EQ(response.status, 400) << path << " " << body.substr(0, 20) << " " << response.body;
      EXPECT_EQ(response.error_type(), "invalid_request_error");
    }
  EXPECT_EQ(server().post("/v1/chat/completions", Json{{"messages", "hi"}}).status, 400);
  EXPECT_EQ(server().post("/completion", Json{{"prompt", "x"}, {"temperature", "hot"}}).status, 400);
  EXPECT_EQ(server().post("/completion", Json{{"prompt", "x"}, {"grammar", "root ::= \"a\""}}).status, 501);
  for (const char* path : {"/completion", "/v1/completions", "/v1/chat/completions"}) {
    Json body = chat_body("Hi", {{"id_slot", 77}});
    body["prompt"] = "x";
    const ClientResponse response = server().post(path, body);
    EXPECT_EQ(response.status, 400) << path << " " << response.body;
    EXPECT_NE(response.error_message().find("id_slot: there is no slot 77"), std::string::npos) << response.body;
  }
  EXPECT_EQ(
      server().ask("/completion", Json{{"prompt", "The ticket number"}, {"n_predict", 3}})["tokens_predicted"], 3);
}

TEST_F(Server_, APromptLongerThanTheContextIsTheErrorThatAgentsKnow) {
  std::vector<int32_t> ids(3000, 10);
  const ClientResponse response = server().post("/completion", Json{{"prompt", ids}});
  EXPECT_EQ(response.status, 400);
  const Json error = response.json()["error"];
  EXPECT_EQ(error["code"], 400);
  EXPECT_EQ(error["type"], "exceed_context_size_error");
  EXPECT_EQ(error["n_prompt_tokens"], 3000);
  EXPECT_EQ(error["n_ctx"], 2048);
  EXPECT_NE(error["message"].get<std::string>().find("exceeds the available context size"), std::string::npos);
  EXPECT_EQ(error.size(), 5u);
  // Known before the first token: a streaming request gets the same status and body.
  const ClientResponse stream = server().post("/completion", Json{{"prompt", ids}, {"stream", true}});
  EXPECT_EQ(stream.status, 400);
  EXPECT_EQ(stream.error_type(), "exceed_context_size_error");
}

TEST_F(Server_, NativeCompletionHasAllItsFields) {
  const Json answer = server().ask("/completion", Json{{"prompt", "Once upon a time"},
                                                       {"n_predict", 8},
                                                       {"ignore_eos", true},
                                                       {"n_probs", 3},
                                                       {"return_tokens", true},
                                                       {"seed", 7}});
  for (const char* name :
       {"index", "content", "tokens", "id_slot", "stop", "model", "tokens_predicted", "tokens_evaluated",
        "generation_settings", "prompt", "has_new_line", "truncated", "stop_type", "stopping_word",
        "tokens_cached", "timings", "completion_probabilities", "kv"})
    EXPECT_TRUE(answer.contains(name)) << name;
  EXPECT_EQ(answer["stop_type"], "limit");
  EXPECT_EQ(answer["tokens_predicted"], 8);
  EXPECT_EQ(answer["tokens"].size(), 8u);
  EXPECT_EQ(answer["model"], "scribe");
  EXPECT_EQ(answer["truncated"], false);
  EXPECT_EQ(answer["generation_settings"]["seed"], 7);
  ASSERT_EQ(answer["completion_probabilities"].size(), 8u);
  const Json& first = answer["completion_probabilities"][0];
  EXPECT_EQ(first["top_logprobs"].size(), 3u);
  EXPECT_EQ(first["id"], answer["tokens"][0]);
  EXPECT_EQ(first["id"], first["top_logprobs"][0]["id"]) << "greedy takes the likeliest";
  EXPECT_LE(first["logprob"].get<double>(), 0);
  const Json& t = answer["timings"];
  EXPECT_EQ(t["cache_n"].get<int64_t>() + t["prompt_n"].get<int64_t>(), answer["tokens_evaluated"].get<int64_t>());
  EXPECT_EQ(answer["kv"]["logical"], answer["tokens_cached"]);
  const Json lifted = server().ask(
      "/completion",
      Json{{"prompt", "x"}, {"n_predict", 1}, {"response_fields", {"content", "timings/predicted_n", "no/such"}}});
  EXPECT_EQ(lifted.size(), 2u);
  EXPECT_EQ(lifted["predicted_n"], 1);
}

TEST_F(Server_, StopWordsAreCutAndNamed) {
  const Json free = server().ask(
      "/completion", Json{{"prompt", "It was the best of times"}, {"n_predict", 24}, {"ignore_eos", true}});
  const std::string text = free["content"].get<std::string>();
  ASSERT_GT(text.size(), 12u);
  const std::string word = text.substr(8, 3);
  const Json stopped = server().ask(
      "/completion",
      Json{{"prompt", "It was the best of times"}, {"n_predict", 24}, {"ignore_eos", true}, {"stop", {word}}});
  EXPECT_EQ(stopped["stop_type"], "word");
  EXPECT_EQ(stopped["stopping_word"], word);
  EXPECT_EQ(stopped["content"], text.substr(0, text.find(word)));
}

TEST_F(Server_, NativeStreamsJoinToTheWholeText) {
  const Json body = {{"prompt", "The door code of the house"},
                     {"n_predict", 30},
                     {"ignore_eos", true},
                     {"stop", {"zzzz"}},
                     {"return_tokens", true}};
  const Json whole = server().ask("/completion", body);
  Json streamed = body;
  streamed["stream"] = true;
  streamed["return_progress"] = true;
  bool has_done = true;
  const std::vector<Json> records = sse_records(server().post("/completion", streamed).body, &has_done);
  EXPECT_FALSE(has_done) << "no [DONE] on native streams";
  std::string text;
  Json tokens = Json::array();
  bool has_progress = false;
  for (const Json& record : records) {
    text += record["content"].get<std::string>();
    for (const Json& id : record["tokens"]) tokens.push_back(id);
    if (!record.contains("prompt_progress")) continue;
    if (!has_progress) {
      EXPECT_EQ(record["prompt_progress"]["processed"], record["prompt_progress"]["cache"]);
    }
    has_progress = true;
  }
  EXPECT_TRUE(has_progress);
  EXPECT_EQ(text, whole["content"].get<std::string>());
  EXPECT_EQ(tokens, whole["tokens"]);
  EXPECT_EQ(records.back()["stop"], true);
  EXPECT_EQ(records.back()["stop_type"], "limit");
  for (size_t i = 0; i + 1 < records.size(); ++i) EXPECT_EQ(records[i]["stop"], false);
}

TEST_F(Server_, ChatAnswersInOpenAiForm) {
  const Json answer = server().ask("/v1/chat/completions",
                                   chat_body("What is the rent?", {{"logprobs", true}, {"top_logprobs", 2}}));
  EXPECT_TRUE(answer["id"].get<std::string>().starts_with("chatcmpl-"));
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["model"], "scribe");
  EXPECT_EQ(answer["system_fingerprint"].get<std::string>().substr(0, 1), "b");
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_TRUE(choice["message"]["content"].is_string());
  EXPECT_TRUE(choice["finish_reason"] == "stop" || choice["finish_reason"] == "length");
  const Json& usage = answer["usage"];
  EXPECT_EQ(choice["logprobs"]["content"].size(), usage["completion_tokens"].get<size_t>());
  EXPECT_EQ(choice["logprobs"]["content"][0]["top_logprobs"].size(), 2u);
  EXPECT_EQ(usage["total_tokens"].get<int64_t>(),
            usage["prompt_tokens"].get<int64_t>() + usage["completion_tokens"].get<int64_t>());
  EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], answer["timings"]["cache_n"]);
  const std::string prompt =
      server().ask("/apply-template", chat_body("What is the rent?"))["prompt"].get<std::string>();
  // Whoever sends the rendered prompt on as a text gets the same tokens: one start token, and not two.
  EXPECT_FALSE(prompt.starts_with("<|bos|>")) << prompt;
  const Json tokens = server().ask("/tokenize", Json{{"content", prompt}, {"add_special", true}})["tokens"];
  EXPECT_EQ(usage["prompt_tokens"].get<size_t>(), tokens.size());
  const Json native = server().ask("/completion", Json{{"prompt", prompt}, {"n_predict", 1}});
  EXPECT_EQ(native["tokens_evaluated"], usage["prompt_tokens"]);
  EXPECT_TRUE(native["prompt"].get<std::string>().starts_with("<|bos|><|"));
  EXPECT_FALSE(answer.contains("compaction")) << "nothing was compacted";
}

TEST_F(Server_, ChatStreamsInTheOrderThatClientsExpect) {
  const Json body = chat_body("Tell me the door code of the east harbour.", {{"ignore_eos", true}});
  const std::string whole =
      server().ask("/v1/chat/completions", body)["choices"][0]["message"]["content"].get<std::string>();
  Json streamed = body;
  streamed["stream"] = true;
  streamed["stream_options"] = Json{{"include_usage", true}};
  bool has_done = false;
  const ClientResponse response = server().post("/v1/chat/completions", streamed);
  EXPECT_EQ(response.headers.at("content-type"), "text/event-stream");
  const std::vector<Json> records = sse_records(response.body, &has_done);
  EXPECT_TRUE(has_done);
  ASSERT_GE(records.size(), 4u);
  EXPECT_EQ(dump_json(records[0]["choices"][0]["delta"]), R"({"role":"assistant","content":null})");
  std::string text;
  std::set<std::string> ids;
  for (size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(records[i]["object"], "chat.completion.chunk");
    ids.insert(records[i]["id"].get<std::string>());
    if (i == 0 || i + 2 >= records.size()) continue;
    const std::string piece = records[i]["choices"][0]["delta"]["content"].get<std::string>();
    EXPECT_FALSE(piece.empty()) << "a delta is never an empty string";
    EXPECT_TRUE(records[i]["choices"][0]["finish_reason"].is_null());
    text += piece;
  }
  EXPECT_EQ(ids.size(), 1u);
  EXPECT_EQ(text, whole);
  const Json& end = records[records.size() - 2];
  EXPECT_EQ(dump_json(end["choices"][0]["delta"]), "{}");
  EXPECT_EQ(end["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(end["kv"].contains("physical"));
  const Json& usage = records.back();
  EXPECT_TRUE(usage["choices"].empty());
  EXPECT_EQ(usage["usage"]["completion_tokens"], 24);
  EXPECT_TRUE(usage.contains("timings"));
}

TEST_F(Server_, TextCompletionTakesListsAndChoices) {
  const Json answer = server().ask("/v1/completions", Json{{"prompt", {"The rent", "The height"}},
                                                           {"max_tokens", 4},
                                                           {"n", 2},
                                                           {"ignore_eos", true},
                                                           {"temperature", 1.0},
                                                           {"seed", 3}});
  EXPECT_EQ(answer["object"], "text_completion");
  ASSERT_EQ(answer["choices"].size(), 4u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(answer["choices"][i]["index"], i);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 16);
  const Json again = server().ask("/v1/completions", Json{{"prompt", {"The rent", "The height"}},
                                                          {"max_tokens", 4},
                                                          {"n", 2},
                                                          {"ignore_eos", true},
                                                          {"temperature", 1.0},
                                                          {"seed", 3}});
  EXPECT_EQ(answer["choices"], again["choices"]) << "a seed makes the choices repeatable";
  EXPECT_NE(answer["choices"][0]["text"], answer["choices"][1]["text"]) << "choices of one prompt differ";
  bool has_done = false;
  const auto records = sse_records(
      server().post("/v1/completions", Json{{"prompt", "The rent"}, {"max_tokens", 4}, {"stream", true}}).body,
      &has_done);
  EXPECT_TRUE(has_done);
  EXPECT_EQ(server().ask("/completion", Json{{"prompt", {"a", "b"}}, {"n_predict", 1}}).size(), 2u)
      << "a list of prompts gives a list";
}

TEST_F(Server_, AClientThatHangsUpInMidStreamFreesItsSlot) {
  for (const bool is_stream : {true, false}) {
    const int64_t n_before = server().scheduler().totals().predicted_tokens;
    {
      Client client(server().port());
      client.send_request(
          "POST", "/completion",
          dump_json(Json{{"prompt", "Once"}, {"n_predict", 2000}, {"ignore_eos", true}, {"stream", is_stream}}));
      if (is_stream) {
        client.read_head();
        EXPECT_FALSE(client.read_chunk().empty());
      } else {
        while (server().scheduler().totals().predicted_tokens == n_before) std::this_thread::sleep_for(1ms);
      }
    }
    ASSERT_TRUE(becomes_idle());
    EXPECT_LT(server().scheduler().totals().predicted_tokens - n_before, 2000) << "it was stopped, not finished";
    EXPECT_EQ(server().ask("/completion",
                           Json{{"prompt", "Once"}, {"n_predict", 2}, {"ignore_eos", true}})["tokens_predicted"],
              2);
  }
}

TEST_F(Server_, ConcurrentStreamsGiveWhatEachGivesAlone) {
  const std::vector<std::string> prompts = {"The rent of the house", "It was a dark night", "The secret word",
                                            "A long way from home", "My dear"};
  const auto body = [](const std::string& prompt, bool is_stream) {
    return Json{{"prompt", prompt}, {"n_predict", 40}, {"ignore_eos", true}, {"stream", is_stream}};
  };
  std::vector<std::string> alone, together(prompts.size());
  for (const std::string& prompt : prompts)
    alone.push_back(server().ask("/completion", body(prompt, false))["content"].get<std::string>());
  std::vector<std::thread> clients;
  for (size_t i = 0; i < prompts.size(); ++i)
    clients.emplace_back([&, i] {
      for (const Json& record : sse_records(server().post("/completion", body(prompts[i], true)).body))
        together[i] += record["content"].get<std::string>();
    });
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(together[i], alone[i]) << prompts[i];
}

TEST_F(Server_, TextsAndTokensRoundTrip) {
  const std::string text = "It was 1682, na\xc3\xafve \xe4\xbd\xa0 <|end|>";
  const Json tokens = server().ask("/tokenize", Json{{"content", text}})["tokens"];
  EXPECT_EQ(server().ask("/detokenize", Json{{"tokens", tokens}})["content"], text);
  const Json pieces =
      server().ask("/tokenize", Json{{"content", text}, {"with_pieces", true}, {"add_special", true}})["tokens"];
  bool has_bytes = false;
  for (const Json& piece : pieces) has_bytes = has_bytes || piece["piece"].is_array();
  EXPECT_TRUE(has_bytes) << "a piece that is not valid UTF-8 comes as bytes";
  EXPECT_EQ(server().ask("/tokenize", Json::object())["tokens"], Json::array());
  EXPECT_EQ(server().post("/detokenize", Json{{"tokens", {-1}}}).status, 400);
  EXPECT_EQ(server().post("/detokenize", Json{{"tokens", {1e9}}}).status, 400);
  EXPECT_EQ(server().post("/tokenize", Json{{"content", 5}}).status, 400);
}

TEST_F(Server_, ModelsSlotsAndPropsTellTheLimits) {
  const Json models = server().get("/v1/models").json();
  EXPECT_EQ(models["data"][0]["id"], "scribe");
  EXPECT_EQ(models["data"][0]["meta"]["n_ctx"], 2048);
  EXPECT_EQ(models["data"][0]["meta"]["n_ctx_train"], 8192);
  EXPECT_EQ(models["models"][0]["name"], "scribe");
  const Json slots = server().get("/slots").json();
  ASSERT_EQ(slots.size(), 2u);
  EXPECT_TRUE(slots[0]["kv"].contains("active_n_kv"));
  EXPECT_EQ(server().get("/slots?fail_on_no_slot=1").status, 200);
  const Json props = server().get("/props").json();
  for (const char* name : {"default_generation_settings", "total_slots", "model_path", "modelai", "shorthand",
                           "chat_template", "bos_token", "build_info"})
    EXPECT_TRUE(props.contains(name)) << name;
  EXPECT_EQ(props["total_slots"], 2);
  EXPECT_EQ(props["default_generation_settings"]["n_ctx"], 2048);
  EXPECT_EQ(props["modelai"]["contract"]["name"], "shorthand");
  for (const char* name : {"effective_context_window", "flash_attention", "structured_output", "prompt_cache",
                           "save_restore", "compacted_prefix", "features"})
    EXPECT_TRUE(props["modelai"]["capabilities"].contains(name)) << name;
  for (const char* name : {"state", "memory", "kv", "compaction"})
    EXPECT_TRUE(props["modelai"]["runtime"].contains(name)) << name;
  EXPECT_EQ(server().post("/props", Json::object()).status, 501);
}

TEST_F(Server_, MetricsHaveTheNamesThatDashboardsRead) {
  server().ask("/completion", Json{{"prompt", "x"}, {"n_predict", 2}});
  const ClientResponse response = server().get("/metrics");
  EXPECT_TRUE(response.headers.at("content-type").starts_with("text/plain; version=0.0.4"));
  for (const char* name :
       {"prompt_tokens_total", "prompt_seconds_total", "tokens_predicted_total", "tokens_predicted_seconds_total",
        "n_decode_total", "n_tokens_max", "prompt_tokens_seconds", "predicted_tokens_seconds",
        "requests_processing", "requests_deferred", "n_busy_slots_per_decode", "kv_cache_usage_ratio",
        "kv_cache_tokens", "modelai_active_n_kv_total", "modelai_compacted_prefix_enabled"})
    EXPECT_NE(response.body.find(fmt::format("\nllamacpp:{} ", name)), std::string::npos) << name;
  EXPECT_EQ(response.body.find("nan"), std::string::npos);
  EXPECT_EQ(response.body.find("inf"), std::string::npos);
  EXPECT_EQ(response.body.find("prompt_tokens_total 0\n"), std::string::npos);
}

TEST_F(Server_, OriginsAreEchoedAndPreflightIsAnswered) {
  const ClientResponse preflight =
      Client(server().port()).request("OPTIONS", "/v1/chat/completions", "", "Origin: http://app.example\r\n");
  EXPECT_EQ(preflight.status, 200);
  EXPECT_EQ(preflight.body, "");
  EXPECT_EQ(preflight.headers.at("access-control-allow-origin"), "http://app.example");
  EXPECT_EQ(preflight.headers.at("access-control-allow-credentials"), "true");
  EXPECT_EQ(preflight.headers.at("access-control-allow-methods"), "GET, POST, DELETE, OPTIONS");
  EXPECT_EQ(preflight.headers.at("access-control-allow-headers"), "*");
  EXPECT_EQ(server().get("/health", "Origin: http://app.example\r\n").headers.at("access-control-allow-origin"),
            "http://app.example");
  EXPECT_EQ(server().get("/health").headers.count("access-control-allow-origin"), 0u);
}

TEST_F(Server_, SlotActions) {
  server().ask("/completion", Json{{"prompt", "Some words to forget"}, {"n_predict", 2}, {"id_slot", 0}});
  const Json erased = server().ask("/slots/0?action=erase", Json::object());
  EXPECT_EQ(erased["id_slot"], 0);
  EXPECT_GT(erased["n_erased"].get<int64_t>(), 0);
  EXPECT_EQ(server().get("/slots").json()[0]["kv"]["active_n_kv"], 0);
  EXPECT_EQ(server().post("/slots/0?action=save", Json{{"filename", "x"}}).status, 501);
  EXPECT_EQ(server().post("/slots/0?action=dance", Json::object()).status, 400);
  for (const char* id : {"9", "-1", "x", "99999999999999999999", "0x"})
    EXPECT_EQ(server().post(fmt::format("/slots/{}?action=erase", id), Json::object()).status, 400) << id;
}

TEST(ServerAccess, KeysPrefixAndSwitchedOffEndpoints) {
  RunningServer server([](engine::ProgramParams& p) {
    p.server.api_keys = {"k1", "k2"};
    p.server.api_prefix = "/api";
    p.server.has_metrics = false;
    p.server.has_slots = false;
    p.server.has_props = true;
    p.server.has_compact = false;
  });
  server.load();
  EXPECT_EQ(server.get("/api/health").status, 200);
  EXPECT_EQ(server.get("/api/v1/models").status, 200);
  const ClientResponse refused = server.get("/api/props");
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.error_type(), "authentication_error");
  EXPECT_EQ(server.get("/api/props", "Authorization: Bearer k2\r\n").status, 200);
  EXPECT_EQ(server.get("/api/props", "X-Api-Key: k1\r\n").status, 200);
  EXPECT_EQ(server.get("/props", "X-Api-Key: k1\r\n").status, 404);
  EXPECT_EQ(server.get("/nowhere").status, 401) << "without a key nobody learns which paths exist";
  EXPECT_EQ(server.get("/api/metrics", "X-Api-Key: k1\r\n").status, 501);
  EXPECT_EQ(server.get("/api/slots", "X-Api-Key: k1\r\n").status, 501);
  EXPECT_EQ(server.post("/api/props", Json::object(), "X-Api-Key: k1\r\n").status, 200);
  const ClientResponse compact = server.post("/api/compact", Json::object(), "X-Api-Key: k1\r\n");
  EXPECT_EQ(compact.status, 501);
  EXPECT_EQ(compact.error_type(), "not_supported_error");
}

TEST(ServerStop, HangsUpOnAGenerationThatWouldGoOn) {
  auto server = std::make_unique<RunningServer>();
  server->load();
  Client client(server->port());
  client.send_request(
      "POST", "/completion",
      dump_json(Json{{"prompt", "Once"}, {"n_predict", 100000}, {"ignore_eos", true}, {"stream", true}}));
  client.read_head();
  server.reset();
  while (client.fill()) {
  }
  SUCCEED() << "the destructor came back and the connection ended";
}

}  // namespace
}  // namespace sh::server
