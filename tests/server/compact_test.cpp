// SPDX-License-Identifier: MIT
// Compaction over HTTP: the request, what clients see of it, and the conversation that goes on.
#include <gtest/gtest.h>

#include <thread>

#include "base/rng.h"
#include "server/running_server.h"

namespace sh::server {
namespace {

class Compact : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = std::make_unique<RunningServer>();
    server_->load();
  }
  static void TearDownTestSuite() { server_.reset(); }
  static RunningServer& server() { return *server_; }

  /// Reads a document into slot 0 and asks its first question; the messages so far, with the answer.
  static Json read_document(const RecallDocument& document) {
    server().ask("/slots/0?action=erase", Json::object());
    Json messages =
        Json::array({message("system", document.context), message("user", document.questions[0].first)});
    const Json answer = ask(messages);
    messages.push_back(message("assistant", answer["choices"][0]["message"]["content"].get<std::string>()));
    return messages;
  }
  static Json ask(const Json& messages) {
    return server().ask("/v1/chat/completions",
                        Json{{"messages", messages}, {"max_tokens", 24}, {"id_slot", 0}, {"temperature", 0}});
  }
  static Json slot() { return server().get("/slots").json()[0]["kv"]; }

 private:
  static std::unique_ptr<RunningServer> server_;
};
std::unique_ptr<RunningServer> Compact::server_;

TEST_F(Compact, AnswersWithTheFieldsThatScriptsRead) {
  const Json messages = read_document(recall_document("512.jsonl", 0));
  const int64_t n_logical = slot()["n_logical"].get<int64_t>();
  const Json report =
      server().ask("/compact", Json{{"id_slot", 0}, {"method", "select"}, {"ratio", 2.0}, {"seq_id", 0}});
  EXPECT_EQ(report["success"], true);
  EXPECT_EQ(report["id_slot"], 0);
  EXPECT_EQ(report["method"], "select");
  EXPECT_NEAR(report["compression_ratio"].get<double>(), 2.0, 0.1);
  EXPECT_GT(report["compaction_time_ms"].get<double>(), 0);
  EXPECT_NEAR(report["original_tokens"].get<double>() / 2, report["compacted_tokens"].get<double>(),
              0.05 * static_cast<double>(n_logical));
  EXPECT_EQ(report["active_n_kv_before"], n_logical);
  EXPECT_LT(report["active_n_kv_after"].get<int64_t>(), n_logical);
  EXPECT_LT(report["bytes_after"].get<int64_t>(), report["bytes_before"].get<int64_t>())
      << "memory is really given back";
  EXPECT_EQ(report["reclaimed"], true);
  EXPECT_EQ(slot()["n_logical"], n_logical);
  EXPECT_EQ(slot()["sequence_state_bytes"], report["bytes_after"]);
  const Json detail = server().get("/slots/0/compaction").json();
  EXPECT_EQ(detail["n_logical"], n_logical);
  EXPECT_EQ(detail["heads"].size(), 10u) << "5 layers of 2 heads";
  EXPECT_EQ(server().get("/slots/1/compaction").status, 404);
}

TEST_F(Compact, ATargetIsMetExactly) {
  read_document(recall_document("512.jsonl", 1));
  EXPECT_EQ(server().ask("/compact", Json{{"target_tokens", 40}})["compacted_tokens"], 40);
}

TEST_F(Compact, BadRequestsAreRefusedWithReasons) {
  const Json messages = read_document(recall_document("512.jsonl", 0));
  const Json before = slot();
  const std::vector<std::pair<std::string, std::string>> bad = {{R"({"id_slot": 999})", "id_slot"},
                                                                {R"({"id_slot": -1})", "id_slot"},
                                                                {R"({"id_slot": "0"})", "id_slot"},
                                                                {R"({"ratio": 0.5})", "ratio"},
                                                                {R"({"ratio": 0})", "ratio"},
                                                                {R"({"ratio": -1})", "ratio"},
                                                                {R"({"ratio": "2"})", "ratio"},
                                                                {R"({"ratio": 1e400})", ""},
                                                                {R"({"method": "magic"})", "magic"},
                                                                {R"({"method": 5})", "method"},
                                                                {R"({"target_tokens": -7})", "target_tokens"},
                                                                {R"({"p0": -1})", "p0"},
                                                                {R"({"p0": 100000})", ""},
                                                                {R"({"live_suffix_tokens": 100000})", ""},
                                                                {R"({"reclaim": "yes"})", "reclaim"},
                                                                {R"({"lambda": "x"})", "lambda"},
                                                                {R"({"max_queries": -5})", "max_queries"},
                                                                {R"([])", ""},
                                                                {R"({)", ""}};
  for (const auto& [body, what] : bad) {
    const ClientResponse response = server().post_text("/compact", body);
    EXPECT_EQ(response.status, 400) << body << " " << response.body;
    EXPECT_NE(response.error_message().find(what), std::string::npos) << response.body;
  }
  EXPECT_EQ(server().post("/compact", Json{{"id_slot", 1}}).status, 400) << "an empty slot";
  EXPECT_EQ(slot(), before) << "a refused request changes nothing";
}

TEST_F(Compact, TheMethodListOfTheEnvironmentIsKept) {
  setenv("LLAMA_COMPACT_ALLOWED_METHODS", "select,solver", 1);
  const ClientResponse refused = server().post("/compact", Json{{"method", "truncate"}});
  EXPECT_EQ(refused.status, 400);
  EXPECT_NE(refused.error_message().find("LLAMA_COMPACT_ALLOWED_METHODS"), std::string::npos);
  read_document(recall_document("512.jsonl", 0));
  EXPECT_EQ(server().post("/compact", Json{{"method", "select"}}).status, 200);
  unsetenv("LLAMA_COMPACT_ALLOWED_METHODS");
}

// The cache and the list of tokens must agree after a compaction: a conversation that goes on evaluates only what
// is new, and facts that stand only in its first message are still known.
TEST_F(Compact, AConversationGoesOnWithoutReadingItsPastAgain) {
  int n_right = 0, n_asked = 0;
  for (int number = 0; number < 4; ++number) {
    const RecallDocument document = recall_document("512.jsonl", number);
    Json messages = read_document(document);
    const Json report = server().ask(
        "/compact", Json{{"id_slot", 0}, {"method", "solver"}, {"ratio", 2.0}, {"live_suffix_tokens", 32}});
    EXPECT_GT(report["n_queries"].get<int64_t>(), 0);
    const int64_t n_logical = slot()["n_logical"].get<int64_t>();
    for (size_t q = 1; q < 4; ++q) {
      messages.push_back(message("user", document.questions[q].first));
      const Json answer = ask(messages);
      const std::string text = answer["choices"][0]["message"]["content"].get<std::string>();
      const int64_t n_prompt = answer["usage"]["prompt_tokens"].get<int64_t>();
      EXPECT_LE(answer["timings"]["prompt_n"].get<int64_t>(), 48)
          << "of " << n_prompt << ": only the new turn is evaluated";
      EXPECT_EQ(answer["timings"]["cache_n"].get<int64_t>() + answer["timings"]["prompt_n"].get<int64_t>(),
                n_prompt);
      EXPECT_GE(answer["timings"]["cache_n"].get<int64_t>(), n_logical - 1);
      EXPECT_LT(answer["kv"]["physical"].get<double>(), answer["kv"]["logical"].get<double>());
      ++n_asked;
      n_right += trimmed(text) == document.questions[q].second;
      messages.push_back(message("assistant", text));
    }
  }
  // The uncompacted cache answers 98.7 % of this file's questions; half the rows must keep most of them.
  EXPECT_GE(n_right, n_asked * 2 / 3) << n_right << " of " << n_asked;
}

TEST_F(Compact, RequestsThatShareNothingOrEverythingAfterwards) {
  const RecallDocument document = recall_document("512.jsonl", 2);
  const Json other = Json::array({message("user", "Tell me the rent of the great house.")});
  server().ask("/slots/0?action=erase", Json::object());
  const std::string fresh = ask(other)["choices"][0]["message"]["content"].get<std::string>();
  const Json messages = read_document(document);
  server().ask("/compact", Json{{"ratio", 4}});
  const Json same = ask(messages);  // a trailing assistant message is continued: the prompt is what the slot holds
  EXPECT_EQ(same["usage"]["prompt_tokens"].get<int64_t>(),
            same["timings"]["cache_n"].get<int64_t>() + same["timings"]["prompt_n"].get<int64_t>());
  const Json begin_only = ask(other);  // shares the start token only, which lies in the compacted part
  EXPECT_EQ(begin_only["choices"][0]["message"]["content"].get<std::string>(), fresh);
  EXPECT_EQ(slot()["n_compactions"], 0) << "another conversation starts clean";
}

TEST_F(Compact, ExtremeRatiosAndRepeats) {
  const Json messages = read_document(recall_document("512.jsonl", 3));
  for (const double ratio : {1.0, 1.5, 8.0, 114.0, 1000.0, 1e9}) {
    const ClientResponse response = server().post("/compact", Json{{"method", "solver"}, {"ratio", ratio}});
    EXPECT_TRUE(response.status == 200 || response.status == 400) << ratio << " " << response.body;
  }
  EXPECT_EQ(ask(messages)["choices"].size(), 1u);
}

TEST_F(Compact, PropsShowWhatIsTrueNow) {
  const auto state = [] { return server().get("/props").json()["modelai"]["capabilities"]["compacted_prefix"]; };
  const auto gauge = [](const std::string& value) {
    return server().get("/metrics").body.find("modelai_compacted_prefix_enabled " + value + "\n") !=
           std::string::npos;
  };
  server().ask("/slots/0?action=erase", Json::object());
  EXPECT_EQ(state()["available"], true);
  EXPECT_EQ(state()["enabled"], false);
  EXPECT_TRUE(gauge("0"));
  read_document(recall_document("512.jsonl", 0));
  EXPECT_EQ(state()["enabled"], false);
  server().ask("/compact", Json::object());
  EXPECT_EQ(state()["enabled"], true);
  EXPECT_TRUE(gauge("1"));
  EXPECT_EQ(server().get("/props").json()["modelai"]["runtime"]["compaction"]["method"], "select");
  server().ask("/slots/0?action=erase", Json::object());
  EXPECT_EQ(state()["enabled"], false);
}

TEST_F(Compact, OverlappingRequestsAllGetAnAnswer) {
  const Json messages = read_document(recall_document("1024.jsonl", 0));
  std::vector<std::thread> clients;
  std::vector<int> statuses(6);
  for (size_t i = 0; i < statuses.size(); ++i)
    clients.emplace_back([&, i] {
      const bool compacts = i % 2 == 0;
      statuses[i] = compacts ? server().post("/compact", Json{{"method", "solver"}, {"ratio", 1.5}}).status
                             : server()
                                   .post("/v1/chat/completions",
                                         Json{{"messages", messages}, {"max_tokens", 4}, {"id_slot", 0}})
                                   .status;
    });
  for (std::thread& client : clients) client.join();
  for (const int status : statuses) EXPECT_TRUE(status == 200 || status == 400) << status;
  EXPECT_EQ(ask(messages)["choices"].size(), 1u);
}

TEST_F(Compact, AClientThatLeavesDuringACompactionDoesNoHarm) {
  const Json messages = read_document(recall_document("1024.jsonl", 1));
  {
    Client client(server().port());
    client.send_request("POST", "/compact", R"({"method": "solver", "ratio": 4})");
  }
  EXPECT_EQ(ask(messages)["choices"].size(), 1u);
}

TEST_F(Compact, RandomJsonIsAlwaysAnswered) {
  read_document(recall_document("512.jsonl", 0));
  Rng rng(29);
  const std::vector<std::string> names = {"id_slot",
                                          "method",
                                          "ratio",
                                          "target_tokens",
                                          "live_suffix_tokens",
                                          "p0",
                                          "reclaim",
                                          "max_queries",
                                          "nnls_iters",
                                          "lambda",
                                          "n_generate",
                                          "max_queries_per_kv_head",
                                          "of_whole_cache"};
  const std::vector<std::string> values = {"0",
                                           "1",
                                           "-1",
                                           "2.5",
                                           "1e308",
                                           "-1e308",
                                           "9223372036854775807",
                                           "18446744073709551615",
                                           "null",
                                           "true",
                                           "\"select\"",
                                           "\"truncate\"",
                                           "\"\"",
                                           "[]",
                                           "{}",
                                           "[[[]]]",
                                           "\"\\u0000\"",
                                           "3",
                                           "100"};
  for (int i = 0; i < 150; ++i) {
    std::string body = "{";
    const auto n = rng.next_below(6);
    for (uint64_t field = 0; field < n; ++field)
      body += fmt::format("{}\"{}\": {}", field == 0 ? "" : ", ", names[rng.next_below(names.size())],
                          values[rng.next_below(values.size())]);
    body += rng.next_below(10) == 0 ? "" : "}";
    const ClientResponse response = server().post_text("/compact", body);
    EXPECT_TRUE(response.status == 200 || response.status == 400 || response.status == 501)
        << body << " " << response.body;
  }
  EXPECT_EQ(server().get("/health").status, 200);
}

TEST(AutomaticCompaction, AConversationOutgrowsItsCacheAndSaysSo) {
  RunningServer server([](engine::ProgramParams& p) {
    p.engine.n_ctx = 512;
    p.engine.n_parallel = 1;
    p.engine.compact_threshold = 0.8;
    p.engine.compact_ratio = 4;
    p.engine.compact_method = "solver";
    p.server.has_compact = false;  // the endpoint's switch and the automatic one are apart
  });
  server.load();
  const RecallDocument document = recall_document("1024.jsonl", 0);
  const Json answer = server.ask(
      "/v1/chat/completions",
      Json{{"messages", {message("system", document.context), message("user", document.questions[0].first)}},
           {"max_tokens", 24}});
  ASSERT_TRUE(answer.contains("compaction")) << dump_json(answer);
  const Json& compaction = answer["compaction"];
  EXPECT_EQ(compaction["method"], "solver");
  EXPECT_EQ(compaction["is_automatic"], true);
  EXPECT_LT(compaction["bytes_after"].get<int64_t>(), compaction["bytes_before"].get<int64_t>());
  EXPECT_GT(answer["usage"]["prompt_tokens"].get<int64_t>(), 900) << "usage stays logical";
  EXPECT_LE(answer["kv"]["physical"].get<double>(), 512);
  EXPECT_GT(answer["kv"]["logical"].get<double>(), 900);
  const Json native = server.ask("/completion", Json{{"prompt", document.context}, {"n_predict", 4}});
  EXPECT_EQ(native["truncated"], false) << "compaction drops no token";
  EXPECT_EQ(server.get("/v1/models").json()["data"][0]["meta"]["n_ctx"], 8192)
      << "the logical limit that clients may fill";
}

}  // namespace
}  // namespace sh::server
