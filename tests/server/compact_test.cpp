// SPDX-License-Identifier: MIT
// Compaction over HTTP: the request, what clients see of it, and the conversation that goes on.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/rng.h"
#include "compaction/head_profile.h"
#include "engine/region_plan.h"
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
  static Json compaction_state() { return server().get("/slots").json()[0]["compaction"]; }
  /// A self-study far longer than any test.
  static Json slow_request() {
    return Json{{"id_slot", 0},
                {"method", "self_study"},
                {"ratio", 4},
                {"options", {{"conversations", 20000}, {"coverage", 0}}}};
  }
  static void wait_for_state(const std::string& state) {
    for (int i = 0; i < 50000 && compaction_state()["state"] != state; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_EQ(compaction_state()["state"], state);
  }

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
  const std::vector<std::pair<std::string, std::string>> bad = {
      {R"({"id_slot": 999})", "id_slot"},
      {R"({"id_slot": -1})", "id_slot"},
      {R"({"id_slot": "0"})", "id_slot"},
      {R"({"id_slot": 1099511627776})", "id_slot: expected a whole number from 0 to 1, got number 1099511627776"},
      {R"({"target": {"bits": 1}})", R"(got object {"bits":1})"},
      {R"({"target": {"kl": 0.02}, "max_kl": 0.01})",
       "max_kl: expected at least the target's kl (0.02), got 0.01"},
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
      {R"({"target": 0.02})", "target"},
      {R"({"target": {"kl": 0}})", "target"},
      {R"({"target": {"kl": "x"}})", "target"},
      {R"({"target": {"bits": 1}})", "target"},
      {R"({"target": {"kl": 1, "head_error": 1}})", "target"},
      {R"({"target": {"head_error": 2}})", "target head_error: expected a number below 1, got 2"},
      {R"({"max_kl": -1})", "max_kl"},
      {R"({"max_kl": true})", "max_kl"},
      {R"({"validate": 1})", "validate"},
      {R"({"pinned": 3})", "pinned"},
      {R"({"pinned": [3, 5]})", "pinned"},
      {R"({"pinned": [[5, 3]]})", "pinned"},
      {R"({"pinned": [[-1, 3]]})", "pinned"},
      {R"({"pinned": [[0, 3, 4]]})", "pinned"},
      {R"({"pinned": [[0, 100000]]})", "pinned"},
      {R"({"options": "fit=none"})", "options"},
      {R"({"options": {"fit": []}})", "options.fit"},
      {R"({"options": {"fit": "wrong"}})", "wrong"},
      {R"({"options": {"magic": 1}})", "magic"},
      {R"({"compact_window_layers": 2})", "window"},
      {R"({"n_generate": -2})", "n_generate"},
      {R"({"budget": "magic"})", "uniform, global, sensitivity, profile"},
      {R"({"budget": ""})", "budget"},
      {R"({"budget": 5})", "budget"},
      {R"({"budget": "uniform", "options": {"budget": "global"}})",
       "options.budget: expected 'uniform' as in budget, or one of the two left out"},
      {R"({"max_queries": 1000000000000})", "max_queries: expected a whole number from 0 to 2147483647"},
      {R"({"budget": "profile"})", "--compact-profile"},
      {R"({"n_on_policy_passes": "x"})", "passes"},
      {R"([])", ""},
      {R"({)", ""}};
  for (const auto& [body, what] : bad) {
    const ClientResponse response = server().post_text("/compact", body);
    EXPECT_EQ(response.status, 400) << body << " " << response.body;
    EXPECT_NE(response.error_message().find(what), std::string::npos) << response.body;
  }
  EXPECT_EQ(server().post("/compact", Json{{"id_slot", 1}}).status, 400) << "an empty slot";
  EXPECT_LT(server().post("/compact", Json{{"method", std::string(100000, 'x')}}).body.size(), 1000u);
  EXPECT_EQ(slot(), before) << "a refused request changes nothing";
}

TEST_F(Compact, WhatNobodyReadsIsNamed) {
  read_document(recall_document("512.jsonl", 0));
  const Json slip =
      server().ask("/compact", Json{{"raito", 8}, {"fit", "none"}, {"seq_id", 0}, {"budget", nullptr}});
  EXPECT_EQ(slip["unused_fields"], Json::array({"raito", "fit", "seq_id"}));
  const Json sizes = server().ask("/compact", Json{{"ratio", 8}, {"target_tokens", 40}, {"of_whole_cache", true}});
  EXPECT_EQ(sizes["compacted_tokens"], 40);
  EXPECT_EQ(sizes["unused_fields"], Json::array({"ratio", "of_whole_cache"})) << "overridden";
  const Json target = server().ask(
      "/compact", Json{{"ratio", 8}, {"target_tokens", 40}, {"target", {{"kl", 50}}}, {"method", "truncate"}});
  EXPECT_EQ(target["unused_fields"], Json::array({"target_tokens", "ratio"}));
  EXPECT_FALSE(server().ask("/compact", Json{{"ratio", 1}, {"id_slot", 0}}).contains("unused_fields"));
  const auto unused = [](Json body) {
    body["ratio"] = 1;
    return server().ask("/compact", body).value("unused_fields", Json::array());
  };
  EXPECT_EQ(unused({{"method", "omp"}, {"options", {{"chunk", 5}, {"omp_keys", 2}}}}),
            Json::array({"options.chunk"}));
  EXPECT_EQ(unused({{"method", "chunked"}, {"options", {{"chunk", 64}, {"coverage", 0.1}}}, {"nnls_iters", 3}}),
            Json::array({"options.coverage"}));
  EXPECT_EQ(
      unused({{"method", "select"}, {"options", {{"schedule", "chunked"}, {"chunk", 64}}}, {"nnls_iters", 3}}),
      Json::array({"nnls_iters"}));
  EXPECT_EQ(unused({{"method", "streaming"}, {"max_queries", 64}, {"n_generate", 64}}),
            Json::array({"n_generate", "max_queries"}));
  EXPECT_EQ(unused({{"budget", "uniform"}, {"options", {{"budget", "uniform"}}}}), Json::array()) << "agreed";
}

TEST_F(Compact, ASlotThatHasNothingToTellSaysWhy) {
  const ClientResponse unknown = server().get("/slots/9/compaction");
  EXPECT_EQ(unknown.status, 400);
  EXPECT_NE(unknown.error_message().find("no slot '9'; this server has slots 0 to 1"), std::string::npos)
      << unknown.body;
  server().ask("/slots/0?action=erase", Json::object());
  read_document(recall_document("512.jsonl", 1));
  EXPECT_EQ(server().post("/compact", Json{{"method", "truncate"}, {"ratio", 8}, {"max_kl", 1e-9}}).status, 422);
  const ClientResponse nothing = server().get("/slots/0/compaction");
  EXPECT_EQ(nothing.status, 404);
  EXPECT_NE(nothing.error_message().find("the last attempt failed: max_kl"), std::string::npos) << nothing.body;
}

TEST_F(Compact, ASampleIsNotAskedWhatItIsWorth) {
  const Json messages = read_document(recall_document("1024.jsonl", 0));
  const Json free = server().ask("/compact", Json{{"method", "solver"}, {"ratio", 8}});
  EXPECT_EQ(free["verdict"], "unknown");
  EXPECT_EQ(free["check"]["n_tokens"], 0);
  server().ask("/slots/0?action=erase", Json::object());
  read_document(recall_document("1024.jsonl", 0));
  const Json asked = server().ask("/compact", Json{{"method", "solver"}, {"ratio", 8}, {"validate", true}});
  EXPECT_NE(asked["verdict"], "unknown");
  EXPECT_GE(asked["check"]["n_tokens"], 32);
}

TEST_F(Compact, AnswersNameTheSlotThatCanBeCompacted) {
  const RecallDocument document = recall_document("512.jsonl", 0);
  const Json body = {{"messages", {message("system", document.context), message("user", "Hello")}},
                     {"max_tokens", 1},
                     {"id_slot", 1}};
  EXPECT_EQ(server().ask("/v1/chat/completions", body)["id_slot"], 1);
  EXPECT_EQ(
      server().ask("/v1/completions", Json{{"prompt", "Hello"}, {"max_tokens", 1}, {"id_slot", 0}})["id_slot"], 0);
}

TEST_F(Compact, TheAnswerCarriesTheCompactionObject) {
  read_document(recall_document("512.jsonl", 0));
  const Json report = server().ask("/compact", Json{{"id_slot", 0},
                                                    {"method", "solver"},
                                                    {"ratio", 4},
                                                    {"pinned", {{10, 20}, {15, 30}}},
                                                    {"options", {{"fit", "none"}, {"reread", 0.5}}},
                                                    {"validate", false},
                                                    {"max_kl", 100},
                                                    {"n_generate", 256},
                                                    {"n_on_policy_passes", 2}});
  EXPECT_EQ(report["unused_fields"], Json::array({"n_on_policy_passes", "n_generate"}));
  EXPECT_EQ(report["fallback_heads"], 1.0) << "options: fit=none turns every fit off";
  EXPECT_TRUE(report["verdict"].is_string());
  for (const char* name : {"kl_mean", "kl_p99", "top1", "n_tokens"})
    EXPECT_TRUE(report["check"].contains(name)) << name;
  const Json& compaction = report["compaction"];
  for (const char* name :
       {"method", "queries", "n_logical", "n_physical_before", "n_physical", "bytes_before", "bytes_after",
        "region_ratio", "real_ratio", "seconds", "heldout_error", "verdict", "check", "is_automatic"})
    EXPECT_TRUE(compaction.contains(name)) << name;
  EXPECT_EQ(compaction["is_automatic"], false);
  EXPECT_EQ(compaction["bytes_after"], report["bytes_after"]);
  EXPECT_LT(compaction["n_physical"].get<double>() * 3, compaction["n_physical_before"].get<double>());
  EXPECT_EQ(compaction_state()["state"], "done");
  EXPECT_EQ(compaction_state()["progress"], 1.0);
}

TEST_F(Compact, WhatWasForgottenIsTold) {
  const RecallDocument document = recall_document("512.jsonl", 0);
  const Json messages = read_document(document);
  const int64_t n_logical = slot()["n_logical"].get<int64_t>();
  server().ask("/compact", Json{{"id_slot", 0},
                                {"method", "solver"},
                                {"ratio", 8},
                                {"p0", 12},
                                {"live_suffix_tokens", 30},
                                {"pinned", {{100, 130}}}});
  const Json told = server().get("/slots/0/compaction").json();
  ASSERT_EQ(told["condensed"].size(), 2u);
  EXPECT_EQ(told["n_condensed"], 2);
  EXPECT_EQ(told["condensed"][0]["start"], 12);
  EXPECT_EQ(told["condensed"][0]["end"], 100);
  EXPECT_EQ(told["condensed"][1]["start"], 130);
  EXPECT_EQ(told["condensed"][1]["end"], n_logical - 30);
  for (const Json& span : told["condensed"]) {
    const std::string text = span["text"].get<std::string>();
    EXPECT_GT(text.size(), 40u);
    EXPECT_LE(text.size(), 80u * 4);
    EXPECT_NE(document.context.find(text), std::string::npos) << text;
  }
  // What stays: the prefix, the pinned span and the live suffix, each with the beginning of its own text.
  const Json& kept = told["kept_verbatim"];
  ASSERT_EQ(kept.size(), 3u);
  const std::pair<int64_t, int64_t> expected[] = {{0, 12}, {100, 130}, {n_logical - 30, n_logical}};
  const engine::Engine& engine = server().engine();
  const std::string prompt = engine.render_messages(messages, false).value();
  std::vector<int32_t> tokens = engine.tokenizer().encode(prompt, {.add_special = false, .parse_special = true});
  for (size_t i = 0; i < 3; ++i) {
    const auto [start, end] = expected[i];
    EXPECT_EQ(kept[i]["start"], start);
    EXPECT_EQ(kept[i]["end"], end);
    std::string text;
    for (int64_t pos = start; pos < std::min(end, std::ssize(tokens)); ++pos)
      text += engine.tokenizer().piece(tokens[static_cast<size_t>(pos)], true);
    const std::string shown = kept[i]["text"].get<std::string>();
    EXPECT_GT(shown.size(), 20u);
    EXPECT_EQ(text.substr(0, shown.size()), shown) << i;
  }
  EXPECT_NE(kept[0]["text"].get<std::string>().find(document.context.substr(0, 10)), std::string::npos);
  EXPECT_NE(document.context.find(kept[1]["text"].get<std::string>()), std::string::npos);
  // Together they are the conversation, nothing twice and nothing left out.
  std::vector<std::pair<int64_t, int64_t>> all;
  for (const char* name : {"kept_verbatim", "condensed"})
    for (const Json& span : told[name]) all.emplace_back(span["start"].get<int64_t>(), span["end"].get<int64_t>());
  std::sort(all.begin(), all.end());
  int64_t at = 0;
  for (const auto& [start, end] : all) {
    EXPECT_EQ(start, at);
    at = end;
  }
  EXPECT_EQ(at, n_logical);
  ASSERT_EQ(told["layers"].size(), 5u);
  double worst = 0;
  for (const Json& layer : told["layers"]) {
    EXPECT_LE(layer["heldout_error"].get<double>(), layer["heldout_error_worst"].get<double>());
    worst = std::max(worst, layer["heldout_error_worst"].get<double>());
  }
  ASSERT_EQ(told["worst_heads"].size(), 10u);
  for (size_t i = 1; i < 10; ++i)
    EXPECT_GE(told["worst_heads"][i - 1]["heldout_error"].get<double>(),
              told["worst_heads"][i]["heldout_error"].get<double>());
  EXPECT_GT(worst, 0);
  EXPECT_TRUE(told["study"].contains("questions"));
  EXPECT_EQ(told["state"]["state"], "done");
}

TEST_F(Compact, QualityIsReachedOrTheCacheStaysAsItIs) {
  read_document(recall_document("512.jsonl", 1));
  const Json before = slot();
  for (const Json& body : {Json{{"method", "truncate"}, {"ratio", 8}, {"max_kl", 1e-9}},
                           Json{{"method", "truncate"}, {"target", {{"kl", 1e-9}}}}}) {
    const ClientResponse refused = server().post("/compact", body);
    EXPECT_EQ(refused.status, 422) << refused.body;
    EXPECT_EQ(refused.json()["error"]["type"], "quality_not_met_error");
    EXPECT_EQ(refused.error_message().find("without fits"), std::string::npos) << "nothing was fitted";
    EXPECT_NE(refused.error_message().find("kl"), std::string::npos) << refused.body;
    EXPECT_NE(refused.error_message().find("the cache is unchanged"), std::string::npos) << refused.body;
    EXPECT_EQ(slot(), before);
  }
  const Json report = server().ask("/compact", Json{{"method", "solver"}, {"target", {{"kl", 0.3}}}});
  EXPECT_GT(report["check"]["n_tokens"].get<int64_t>(), 0);
  EXPECT_LE(report["check"]["kl_mean"].get<double>(), 0.3);
  EXPECT_GT(report["compression_ratio"].get<double>(), 1.2) << "the ratio that was reached";
  EXPECT_NEAR(report["compression_ratio"].get<double>(),
              report["original_tokens"].get<double>() / report["compacted_tokens"].get<double>(), 0.05 * 100);
  EXPECT_LT(slot()["sequence_state_bytes"].get<int64_t>(), before["sequence_state_bytes"].get<int64_t>());
  EXPECT_TRUE(report["head_error"].is_null()) << "not measured";
  EXPECT_EQ(report["check"]["compared_with"], "uncompacted");
}

TEST_F(Compact, AHeadErrorIsReachedAndTold) {
  read_document(recall_document("512.jsonl", 1));
  const Json report = server().ask("/compact", Json{{"target", {{"head_error", 0.2}}}});
  EXPECT_GT(report["head_error"].get<double>(), 0);
  EXPECT_LE(report["head_error"].get<double>(), 0.2 + 1e-9);
  EXPECT_GE(report["compacted_tokens"].get<int64_t>(), 2);
}

TEST_F(Compact, TheServersProfileIsUsed) {
  const std::string path = testing::TempDir() + fmt::format("shorthand_server_profile_{}.json", getpid());
  RunningServer with_profile([&](engine::ProgramParams& p) { p.engine.compact_profile = path; });
  compaction::HeadProfile profile{.model = engine::profile_key(server().engine()), .method = "by hand", .shares = {}};
  profile.shares.assign(5, {0.1f, 0.1f});
  profile.shares[2] = {0.2f, 0.0f};
  ASSERT_TRUE(write_file(path, compaction::format_head_profile(profile)).ok());
  with_profile.load();
  unlink(path.c_str());
  with_profile.ask("/completion", Json{{"prompt", recall_document("512.jsonl", 0).context}, {"n_predict", 1}, {"id_slot", 0}});
  const Json report = with_profile.ask("/compact", Json{{"id_slot", 0}, {"budget", "profile"}, {"ratio", 8}});
  const Json heads = with_profile.get("/slots/0/compaction").json()["heads"];
  ASSERT_EQ(heads.size(), 10u);
  EXPECT_EQ(heads[5]["rows"], 0) << "of share 0";
  const double even = report["compacted_tokens"].get<double>();
  EXPECT_NEAR(heads[4]["rows"].get<double>(), 2 * even, 2);
  EXPECT_NEAR(heads[0]["rows"].get<double>(), even, 2);
}

TEST_F(Compact, ProgressIsShownAndTheCompactionCanBeCancelled) {
  const RecallDocument document = recall_document("512.jsonl", 0);
  Json messages = read_document(document);
  const Json before = slot();
  EXPECT_EQ(compaction_state()["state"], "none");
  ClientResponse cancelled_compaction;
  std::thread client([&] { cancelled_compaction = server().post("/compact", slow_request()); });
  wait_for_state("running");
  double progress = 0;
  for (int i = 0; i < 40; ++i) {
    const Json state = compaction_state();
    EXPECT_EQ(state["method"], "self_study");
    EXPECT_GE(state["progress"].get<double>(), progress);
    EXPECT_GE(state["seconds"].get<double>(), 0);
    progress = state["progress"].get<double>();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  const ClientResponse overlapping = server().post("/compact", Json{{"id_slot", 0}});
  EXPECT_EQ(overlapping.status, 503);
  EXPECT_NE(overlapping.error_message().find("already compacting"), std::string::npos) << overlapping.body;
  // The conversation goes on meanwhile.
  messages.push_back(message("user", document.questions[1].first));
  const Json answer = ask(messages);
  EXPECT_EQ(trimmed(answer["choices"][0]["message"]["content"].get<std::string>()), document.questions[1].second);
  EXPECT_EQ(compaction_state()["state"], "running");
  EXPECT_EQ(server().ask("/slots/0?action=cancel-compaction", Json::object())["cancelled"], true);
  client.join();
  EXPECT_EQ(cancelled_compaction.status, 503);
  EXPECT_NE(cancelled_compaction.error_message().find("cancelled"), std::string::npos);
  EXPECT_EQ(compaction_state()["state"], "failed");
  EXPECT_EQ(slot()["n_compactions"], 0);
  EXPECT_EQ(slot()["n_physical"], slot()["n_logical"]);
  EXPECT_EQ(server().ask("/slots/0?action=cancel-compaction", Json::object())["cancelled"], false);
}

// Answers are waited for when the server ends, up to 5 s; a compaction, of which nothing is lost, is not.
TEST_F(Compact, AServerThatStopsDoesNotWaitForACompaction) {
  RunningServer ending;
  ending.load();
  ending.ask("/completion",
             Json{{"prompt", recall_document("512.jsonl", 0).context}, {"n_predict", 1}, {"id_slot", 0}});
  ClientResponse ended;
  std::thread client([&] { ended = ending.post("/compact", slow_request()); });
  for (int i = 0; i < 50000 && ending.get("/slots").json()[0]["compaction"]["state"] != "running"; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const Stopwatch watch;
  ending.stop();
  client.join();
  EXPECT_LT(watch.seconds(), 4);
  EXPECT_EQ(ended.status, 503) << ended.body;
  EXPECT_NE(ended.error_message().find("the server is shutting down"), std::string::npos) << ended.body;
}

TEST_F(Compact, AClientThatLeavesEndsItsCompaction) {
  read_document(recall_document("512.jsonl", 0));
  {
    Client client(server().port());
    client.send_request("POST", "/compact", dump_json(slow_request()));
    wait_for_state("running");
  }
  wait_for_state("failed");
  EXPECT_EQ(slot()["n_compactions"], 0);
}

TEST_F(Compact, TheSlotActionOfTheOtherDialect) {
  read_document(recall_document("512.jsonl", 0));
  const int64_t n_logical = slot()["n_logical"].get<int64_t>();
  const Json report = server().ask("/slots/0?action=compact", Json{{"keep_ratio", 0.25},
                                                                   {"keep_first", 10},
                                                                   {"keep_last", 20},
                                                                   {"scorer", "knorm"},
                                                                   {"use_covariance", true}});
  EXPECT_EQ(report["method"], "select");
  EXPECT_EQ(report["original_tokens"], n_logical - 30);
  EXPECT_NEAR(report["compression_ratio"].get<double>(), 4, 0.1);
  EXPECT_EQ(report["unused_fields"], Json::array({"scorer", "use_covariance"}));
  const ClientResponse bad = server().post("/slots/0?action=compact", Json{{"keep_ratio", 1.5}});
  EXPECT_EQ(bad.status, 400);
  EXPECT_NE(bad.error_message().find("keep_ratio"), std::string::npos);
  for (const char* name : {"keep_first", "keep_last"})
    EXPECT_TRUE(server()
                    .post("/slots/0?action=compact", Json{{name, 100000}})
                    .error_message()
                    .starts_with(fmt::format("{}: expected 0 to {}", name, n_logical)))
        << name;
}

TEST_F(Compact, TheMethodListOfTheEnvironmentIsKept) {
  setenv("LLAMA_COMPACT_ALLOWED_METHODS", "select,solver", 1);
  const ClientResponse refused = server().post("/compact", Json{{"method", "truncate"}});
  EXPECT_EQ(refused.status, 400);
  EXPECT_NE(refused.error_message().find("LLAMA_COMPACT_ALLOWED_METHODS"), std::string::npos);
  read_document(recall_document("512.jsonl", 0));
  EXPECT_EQ(server().post("/compact", Json{{"method", "select"}}).status, 200);
  for (const char* list : {"solver, sequential_on_policy", "sequential"}) {
    setenv("LLAMA_COMPACT_ALLOWED_METHODS", list, 1);
    for (const char* name : {"sequential", "sequential_on_policy"})
      EXPECT_EQ(server().post("/compact", Json{{"method", name}, {"options", {{"conversations", 1}}}}).status, 200)
          << name << " is one method under both names: " << list;
  }
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
        "/compact", Json{{"id_slot", 0},
                         {"method", "solver"},
                         {"ratio", 2.0},
                         {"live_suffix_tokens", 32},
                         {"options", {{"reread", 1}}}});  // a sample of so short a text would miss facts
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

TEST_F(Compact, TheNumbersOfASecondCompactionAgree) {
  read_document(recall_document("512.jsonl", 0));
  const int64_t n_logical = slot()["n_logical"].get<int64_t>();
  for (int64_t n = 1; n <= 2; ++n) {
    const Json report = server().ask("/compact", Json{{"ratio", 4}, {"validate", true}});
    const double before = report["original_tokens"].get<double>(),
                 after = report["compacted_tokens"].get<double>();
    EXPECT_NEAR(report["compression_ratio"].get<double>(), before / after, 0.02 * before / after);
    EXPECT_EQ(report["n_region"], n_logical - 8) << "positions, however often they were compacted";
    EXPECT_EQ(report["n_logical"], n_logical);
    const double highest = static_cast<double>(n_logical) * (n == 1 ? 1.0 : 0.3);
    EXPECT_LT(before, highest) << "rows, not positions";
    EXPECT_GT(before, 0.6 * highest);
    EXPECT_EQ(report["check"]["compared_with"], n == 1 ? "uncompacted" : "compacted");
    EXPECT_EQ(report["compaction"]["n_compactions"], n);
    EXPECT_EQ(slot()["n_compactions"], n);
    EXPECT_EQ(server().get("/slots/0/compaction").json()["n_compactions"], n);
  }
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
  EXPECT_EQ(server().get("/props").json()["modelai"]["runtime"]["compaction"]["method"], "select")
      << "what /compact takes by itself";
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
  // 503: the slot is already compacting, or the conversation was cut back meanwhile.
  for (const int status : statuses) EXPECT_TRUE(status == 200 || status == 400 || status == 503) << status;
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
                                          "of_whole_cache",
                                          "target",
                                          "max_kl",
                                          "pinned",
                                          "validate",
                                          "options",
                                          "compact_window_layers",
                                          "n_on_policy_passes"};
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
                                           "[[0, 5]]",
                                           "{\"kl\": 1e-3}",
                                           "{\"fit\": \"none\"}",
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
    EXPECT_TRUE(response.status == 200 || response.status == 400 || response.status == 422)
        << body << " " << response.body;
  }
  EXPECT_EQ(server().get("/health").status, 200);
}

// Trap 29: bodies that are nearly right.
TEST_F(Compact, DamagedBodiesAreAlwaysAnswered) {
  const std::vector<std::string> bodies = {
      R"({"id_slot": 0, "method": "select", "ratio": 1.1, "p0": 12, "live_suffix_tokens": 40, "pinned": [[20, 30], [50, 60]]})",
      R"({"id_slot": 0, "method": "solver", "ratio": 1.2, "options": {"fit": "both", "reread": 0.1}, "validate": true, "max_kl": 5})",
      R"({"id_slot": 0, "method": "truncate", "target": {"kl": 0.5}, "of_whole_cache": false, "nnls_iters": 3})",
      R"({"id_slot": 0, "method": "snapkv", "target_tokens": 300, "budget": "uniform", "max_queries": 64, "reclaim": true})",
      R"({"id_slot": 0, "method": "streaming", "target": {"head_error": 0.9}, "lambda": 0.1, "compact_window_layers": false})"};
  const std::vector<std::string> pieces = {"0",  "-",    "\"",   "{",    "}",  "[",        "]",        ",",   ":",
                                           "1e", "null", "true", "\\u", "é",  "\xff\xfe", "99999999", " ",   "\n",
                                           ".5", "NaN",  "\\",   "//",   "{}", "[[",       "\"kl\":",  "e+9", "-1"};
  Rng rng(41);
  int n_answered = 0, n_refused = 0;
  Json messages;
  for (int i = 0; i < 120; ++i) {
    if (i % 30 == 0) messages = read_document(recall_document("512.jsonl", i / 30));
    std::string body = bodies[rng.next_below(bodies.size())];
    for (uint64_t n = rng.next_below(4); n > 0; --n) {
      const size_t at = rng.next_below(body.size()), length = rng.next_below(12);
      switch (rng.next_below(4)) {
        case 0:
          body.erase(at, length);
          break;
        case 1:
          body.insert(at, pieces[rng.next_below(pieces.size())]);
          break;
        case 2:
          body.insert(at, body.substr(rng.next_below(body.size()), length));
          break;
        default:
          body[at] = static_cast<char>(rng.next_below(256));
      }
      if (body.empty()) body = "{";
    }
    const ClientResponse response = server().post_text("/compact", body);
    EXPECT_TRUE(response.status == 200 || response.status == 400 || response.status == 422)
        << response.status << " for " << body << "\n"
        << response.body;
    (response.status == 200 ? n_answered : n_refused) += 1;
    EXPECT_TRUE(parse_json(response.body).ok()) << response.body;
  }
  EXPECT_GT(n_answered, 10);
  EXPECT_GT(n_refused, 10);
  EXPECT_EQ(server().get("/health").status, 200);
  messages.push_back(message("user", "Tell me the badge number of Rachel Young."));
  const Json answer = ask(messages);
  EXPECT_EQ(answer["choices"].size(), 1u) << "the slot goes on";
  EXPECT_LE(answer["timings"]["prompt_n"].get<int64_t>(), 48) << "from what it held";
}

// In delayed mode a turn is compacted when the next one's prompt says what is wanted of it.
TEST(AutomaticCompaction, InDelayedModeTheOldTurnIsCompactedForTheNextOnesQueries) {
  for (const bool is_delayed : {true, false}) {
    RunningServer server([&](engine::ProgramParams& p) {
      p.engine.n_ctx = 512;
      p.engine.n_parallel = 1;
      p.engine.compact_threshold = 0.8;
      p.engine.compact_method = "select";
      p.engine.compact_delay = is_delayed;
    });
    server.load();
    const auto kv = [&] { return server.get("/slots").json()[0]["kv"]; };
    const auto wait_until_done = [&] {
      for (int i = 0; i < 20000 && server.get("/slots").json()[0]["compaction"]["state"] != "done"; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    };
    const RecallDocument document = recall_document("512.jsonl", 0);
    Json messages = Json::array({message("system", document.context), message("user", document.questions[0].first)});
    const auto turn = [&] {
      const Json answer = server.ask("/v1/chat/completions", Json{{"messages", messages}, {"max_tokens", 24}});
      messages.push_back(message("assistant", answer["choices"][0]["message"]["content"].get<std::string>()));
      return answer;
    };
    const Json first = turn();
    if (!is_delayed) {
      wait_until_done();
      EXPECT_GE(kv()["n_compactions"].get<int64_t>(), 1) << "at once";
      continue;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_FALSE(first.contains("compaction"));
    EXPECT_EQ(kv()["n_compactions"], 0) << "put off to the next turn";
    const int64_t n_first = kv()["n_logical"].get<int64_t>();
    messages.push_back(message("user", document.questions[2].first));
    turn();
    wait_until_done();
    EXPECT_EQ(kv()["n_compactions"], 1);
    const Json told = server.get("/slots/0/compaction").json();
    EXPECT_NE(told["queries"].get<std::string>().find("recent"), std::string::npos) << "the turn's own queries";
    ASSERT_FALSE(told["condensed"].empty());
    EXPECT_EQ(told["condensed"].back()["end"], n_first) << "the turn that asks stays live";
  }
}

TEST(AutomaticCompaction, AConversationOutgrowsItsCacheAndSaysSo) {
  RunningServer server([](engine::ProgramParams& p) {
    p.engine.n_ctx = 512;
    p.engine.n_parallel = 1;
    p.engine.compact_threshold = 0.8;
    p.engine.compact_ratio = 4;
    p.engine.compact_method = "self_study";
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
  EXPECT_EQ(compaction["method"], "self_study");
  EXPECT_EQ(compaction["is_automatic"], true);
  EXPECT_TRUE(compaction["verdict"].is_string());
  EXPECT_TRUE(compaction["check"].contains("kl_mean"));
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
