// SPDX-License-Identifier: MIT
#include "engine/engine.h"

#include <cmath>
#include <limits>

#include "engine/scribe.h"

namespace sh::engine {
namespace {

TEST(Engine, BadOptionsAreErrorsThatNameTheFlag) {
  struct Case {
    const char* flag;
    void (*spoil)(EngineOptions&);
  };
  const Case cases[] = {
      {"-m", [](EngineOptions& o) { o.model_path.clear(); }},
      {"no such file", [](EngineOptions& o) { o.model_path = "/no such file"; }},
      {"-np", [](EngineOptions& o) { o.n_parallel = 0; }},
      {"-np", [](EngineOptions& o) { o.n_parallel = 100000; }},
      {"-ub", [](EngineOptions& o) { o.n_ubatch = 0; }},
      {"-b", [](EngineOptions& o) { o.n_batch = -1; }},
      {"--step-ms", [](EngineOptions& o) { o.step_ms = -1; }},
      {"-c", [](EngineOptions& o) { o.n_ctx = std::numeric_limits<int64_t>::max(); }},
      {"-c", [](EngineOptions& o) { o.n_ctx = 3, o.n_parallel = 4, o.is_kv_unified = false; }},
      {"--compact-threshold", [](EngineOptions& o) { o.compact_threshold = 1.5; }},
      {"--compact-threshold", [](EngineOptions& o) { o.compact_threshold = std::nan(""); }},
      {"--compact-ratio", [](EngineOptions& o) { o.compact_threshold = 0.5, o.compact_ratio = 1; }},
      {"--compact-ratio", [](EngineOptions& o) { o.compact_threshold = 0.5, o.compact_ratio = std::nan(""); }},
      {"--compact-method: unknown compaction method 'magic'",
       [](EngineOptions& o) { o.compact_threshold = 0.5, o.compact_method = "magic"; }},
      {"'magic'", [](EngineOptions& o) { o.compact_method = "magic"; }},
      {"(--compact-...): max_kl: expected at least the target's kl (0.02), got 0.01",
       [](EngineOptions& o) { o.compact_target_kl = 0.02, o.compact_max_kl = 0.01; }},
      {"(--compact-...): target: expected a kl or a head_error, got both",
       [](EngineOptions& o) { o.compact_target_kl = 0.02, o.compact_target_head_error = 0.1; }},
      {"queries=none leaves 'self_study' nothing",
       [](EngineOptions& o) {
         o.compact_options = {{"queries", "none"}};
       }},
      {"-ctk", [](EngineOptions& o) { o.type_v = DType::q6_k; }},
      {"q5_1, q8_0", [](EngineOptions& o) { o.type_v = DType::q6_k; }},
      {"z80", [](EngineOptions& o) { o.kernels = "z80"; }},
      {"{%", [](EngineOptions& o) { o.chat_template = "{% if"; }},
  };
  for (const Case& c : cases) {
    EngineOptions options{.n_ctx = 256, .n_threads = 1};
    options.model_path = std::string(SH_SOURCE_DIR) + "/models/scribe.gguf";
    c.spoil(options);
    const auto engine = Engine::open(options);
    ASSERT_FALSE(engine.ok()) << c.flag;
    EXPECT_NE(engine.error().message.find(c.flag), std::string::npos) << engine.error().message;
  }
}

TEST(Engine, PrefillDoesNotDependOnThePieces) {
  std::vector<std::string> prints;
  std::vector<Mat<float>> logits;
  for (const int32_t n_ubatch : {1, 37, 512}) {
    const auto engine = open_scribe({.n_ctx = 256, .n_ubatch = n_ubatch});
    auto ids = document_ids(*engine, read_document("512", 0));
    ids.resize(100);
    kv::SequenceCache sequence(engine->block_pool());
    logits.push_back(engine->prefill(sequence, ids, {.all_logits = true}).value());
    EXPECT_EQ(logits.back().rows, 100);
    prints.push_back(fingerprint(sequence));
  }
  for (size_t i = 1; i < prints.size(); ++i) {
    EXPECT_TRUE(prints[i] == prints[0]);
    EXPECT_TRUE(logits[i].data == logits[0].data);
  }
}

TEST(Engine, PrefillTellsItsProgressAndStops) {
  const auto engine = open_scribe({.n_ctx = 256, .n_ubatch = 10});
  kv::SequenceCache sequence(engine->block_pool());
  std::vector<int64_t> told;
  const std::vector<int32_t> ids(45, 100);
  const auto stopped = engine->prefill(sequence, ids, {.on_progress = [](void* context, int64_t n_done) {
                                         static_cast<std::vector<int64_t>*>(context)->push_back(n_done);
                                         return n_done < 30;
                                       }, .progress_context = &told});
  ASSERT_FALSE(stopped.ok());
  EXPECT_EQ(stopped.error().kind, ErrorKind::cancelled);
  EXPECT_EQ(told, (std::vector<int64_t>{10, 20, 30}));
  EXPECT_EQ(sequence.next_pos().value, 30);
}

TEST(Engine, AForwardWithoutRoomChangesNothing) {
  const auto engine = open_scribe({.n_ctx = 256});
  kv::SequenceCache a(engine->block_pool()), b(engine->block_pool());
  ASSERT_TRUE(engine->prefill(a, std::vector<int32_t>(20, 100)).ok());
  const std::string before = fingerprint(a);
  const PoolFiller filler(engine->block_pool(), 15 * 4096);  // one block for each of 10 heads, and not for two sequences
  const std::vector<int32_t> ids(40, 100);
  std::vector<kv::Pos> pos;
  std::vector<kv::SequenceCache*> sequences;
  for (int64_t i = 0; i < 40; ++i) {
    kv::SequenceCache& sequence = i < 20 ? a : b;
    sequences.push_back(&sequence);
    pos.push_back(sequence.next_pos() + i % 20);
  }
  const auto done = engine->forward({ids, pos, sequences, {}}, MatView<float>());
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().kind, ErrorKind::out_of_memory);
  EXPECT_TRUE(fingerprint(a) == before);
  EXPECT_EQ(b.next_pos().value, 0);
}

TEST(Engine, SaysWhatItOpened) {
  const auto engine = open_scribe({.n_ctx = 300, .n_parallel = 3, .is_kv_unified = false, .compact_threshold = 0.5});
  EXPECT_EQ(engine->alias(), "scribe.gguf");
  EXPECT_EQ(engine->n_ctx(), 300);
  EXPECT_EQ(engine->n_ctx_slot(), 100);
  EXPECT_EQ(engine->n_ctx_logical(), 8192);
  EXPECT_TRUE(engine->compacts_automatically());
  std::string all;
  for (const std::string& line : engine->describe()) all += line + "\n";
  for (const char* what : {"scribe", "llama", "threads", "300 tokens"})
    EXPECT_NE(all.find(what), std::string::npos) << what << "\n" << all;
  EXPECT_EQ(all.find("compacted"), std::string::npos) << "not every command holds conversations: " << all;
  for (const char* what : {"3 conversations", "self_study"})
    EXPECT_NE(engine->describe_conversations().find(what), std::string::npos) << what;
}

}  // namespace
}  // namespace sh::engine
