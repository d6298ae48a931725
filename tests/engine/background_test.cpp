// SPDX-License-Identifier: MIT
// Compactions in the background: conversations go on beside them, and whatever happens meanwhile nothing is lost.
#include <atomic>
#include <chrono>
#include <thread>

#include "engine/region_plan.h"
#include "engine/scheduler_bench.h"

namespace sh::engine {
namespace {

bool is_compacting(const SlotStatus& slot) {
  return slot.compaction.has_value() && slot.compaction->stage != kWaitingStage;
}
bool is_studying(const SlotStatus& slot) {
  return slot.compaction.has_value() && slot.compaction->stage == "queries";
}

/// A request that goes on until it is cancelled, and counts its tokens.
class Talker {
 public:
  Talker(Bench& bench, std::vector<int32_t> prompt, int32_t id_slot) : bench_(bench) {
    client.on_event = [this](const GenerationEvent& event) { n_tokens += static_cast<int>(event.ids.size()); };
    GenerationRequest request = bench.greedy(std::move(prompt), -1);
    request.ignore_eos = true;
    request.id_slot = id_slot;
    id_ = bench.submit(std::move(request), client);
  }
  ~Talker() {
    bench_.scheduler->cancel(id_);
    client.last();
  }
  void wait_for_tokens(int n) {
    const int end = n_tokens + n;
    while (n_tokens < end) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  Client client;
  std::atomic<int> n_tokens{0};

 private:
  Bench& bench_;
  uint64_t id_ = 0;
};

/// A conversation of questions and answers on slot 0.
class Dialogue {
 public:
  explicit Dialogue(Bench& bench) : tokens(bench.ids), bench_(bench) {}
  /// Asks; whether the answer is right.
  bool ask(size_t i_question) {
    const Question& question = bench_.document.questions[i_question];
    const std::vector<int32_t> end_of_turn = encode(*bench_.engine, "<|end|>");
    tokens = joined(tokens, joined(n_asked == 0 ? std::vector<int32_t>{} : end_of_turn,
                                   question_ids(*bench_.engine, question.text)));
    Client client;
    GenerationRequest request = bench_.greedy(tokens);
    request.id_slot = 0;
    bench_.submit(std::move(request), client);
    last = client.last();
    EXPECT_EQ(last.stop_reason, StopReason::eos) << (last.error ? last.error->message : "");
    EXPECT_EQ(last.timings.cache_n, n_asked == 0 ? 0 : n_held_) << "nothing may be read twice";
    for (CompactionEvent& event : client.compactions()) compactions.push_back(std::move(event));
    tokens = Bench::conversation(tokens, client.ids());
    n_held_ = static_cast<int64_t>(tokens.size());
    ++n_asked;
    return trimmed(client.text()) == question.answer;
  }
  std::vector<int32_t> tokens;
  std::vector<CompactionEvent> compactions;
  GenerationEvent last;
  int n_asked = 0;

 private:
  Bench& bench_;
  int64_t n_held_ = 0;
};

TEST(Background, OthersGoOnWhileASlotIsCompactedAndProgressOnlyGrows) {
  Bench bench({.n_ctx = 8192, .n_parallel = 2});
  bench.read(bench.ids, 0);
  const Document other = read_document("512", 1);
  Talker talker(bench, document_ids(*bench.engine, other), 1);
  talker.wait_for_tokens(1);
  CompactionRequest request = slow_request();
  request.self_study.n_conversations = 48;
  request.self_study.max_answer_tokens = 8;
  Answer<CompactionReport> answer;
  EXPECT_FALSE(bench.scheduler->slots()[0].compaction.has_value());
  bench.scheduler->compact(0, request, answer.sink());
  const int n_before = talker.n_tokens;
  int n_seen = 0, n_while_compacting = 0;
  double progress = 0;
  while (!answer.is_there()) {
    const SlotStatus slot = bench.scheduler->slots()[0];
    if (slot.compaction) {
      EXPECT_GE(slot.compaction->fraction, progress);
      EXPECT_LE(slot.compaction->fraction, 1.0);
      EXPECT_EQ(slot.compaction->method, "self_study");
      EXPECT_FALSE(slot.compaction->is_automatic);
      n_seen += slot.compaction->fraction > progress;
      progress = slot.compaction->fraction;
      n_while_compacting = talker.n_tokens - n_before;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  ASSERT_TRUE(answer.wait().ok()) << answer.wait().error().message;
  EXPECT_GE(n_while_compacting, 10);
  EXPECT_GE(n_seen, 3);
  EXPECT_GT(progress, 0.5);
  const SlotStatus slot = bench.scheduler->slots()[0];
  EXPECT_FALSE(slot.compaction.has_value());
  ASSERT_TRUE(slot.last_compaction != nullptr);
  EXPECT_EQ(slot.usage.n_compactions, 1);
  EXPECT_LT(slot.usage.n_physical * 3, static_cast<double>(bench.ids.size()));
}

TEST(Background, AConversationGoesOnWhileItIsCompacted) {
  Bench bench({.n_ctx = 4096, .n_parallel = 1});
  Dialogue dialogue(bench);
  EXPECT_TRUE(dialogue.ask(1));
  const auto n_snapshot = static_cast<int64_t>(dialogue.tokens.size());
  CompactionRequest request = slow_request();
  request.self_study.n_conversations = 128;
  Answer<CompactionReport> answer;
  bench.scheduler->compact(0, request, answer.sink());
  bench.wait_for(0, is_studying);
  int n_right = 0, n_asked = 0;
  while (!answer.is_there() && n_asked < 60) {
    n_right += dialogue.ask(2 + static_cast<size_t>(n_asked++) % 4);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const auto& report = answer.wait();
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_GE(n_asked, 2);
  EXPECT_GE(n_right, n_asked - 1);
  EXPECT_EQ(report->n_logical, n_snapshot);
  // The compacted start and every row since then.
  const auto n_logical = static_cast<int64_t>(dialogue.tokens.size());
  SlotStatus slot = bench.scheduler->slots()[0];
  EXPECT_EQ(slot.n_logical, n_logical);
  EXPECT_NEAR(slot.usage.n_physical, report->rows_after + static_cast<double>(n_logical - n_snapshot), 1e-6);
  EXPECT_LT(report->rows_after * 3, report->rows_before);
  // What was said before the snapshot and what was said during the compaction are both there.
  EXPECT_TRUE(dialogue.ask(0));
  EXPECT_EQ(bench.scheduler->slots()[0].n_logical, static_cast<int64_t>(dialogue.tokens.size()));
}

TEST(Background, GivesWhatACompactionInTheForegroundGives) {
  Bench bench({.n_ctx = 2048, .n_parallel = 2});
  const Document other = read_document("512", 1);
  for (const char* method : {"solver", "self_study"}) {
    bench.read(bench.ids, 0);
    Conversation foreground(*bench.engine, false);
    ASSERT_TRUE(foreground.append(bench.ids, {}).ok());
    const auto expected = foreground.compact(small_request(method));
    ASSERT_TRUE(expected.ok()) << expected.error().message;
    Talker talker(bench, document_ids(*bench.engine, other), 1);
    const auto background = bench.compact(small_request(method), 0);
    ASSERT_TRUE(background.ok()) << background.error().message;
    EXPECT_EQ(kept_rows(*background), kept_rows(*expected)) << method;
    EXPECT_EQ(background->heldout_plain, expected->heldout_plain) << method;
    EXPECT_EQ(background->heldout_fitted, expected->heldout_fitted) << method;
    EXPECT_EQ(background->bytes_after, expected->bytes_after) << method;
    Answer<int64_t> erased;
    bench.scheduler->erase_slot(0, erased.sink());
    erased.wait();
  }
}

TEST(Background, WhoeverCancelsNothingChanges) {
  Bench bench({.n_ctx = 2048, .n_parallel = 1}), untouched({.n_ctx = 2048, .n_parallel = 1});
  bench.read(bench.ids, 0);
  untouched.read(untouched.ids, 0);
  const SlotStatus before = bench.scheduler->slots()[0];
  for (const bool by_slot : {false, true}) {
    Answer<CompactionReport> answer;
    const uint64_t id = bench.scheduler->compact(0, slow_request(), answer.sink());
    bench.wait_for(0, is_studying);
    if (by_slot) {
      Answer<bool> cancelled;
      bench.scheduler->cancel_compaction(0, cancelled.sink());
      EXPECT_TRUE(cancelled.wait().value());
    } else {
      bench.scheduler->cancel(id);
    }
    ASSERT_FALSE(answer.wait().ok());
    EXPECT_EQ(answer.wait().error().kind, ErrorKind::cancelled);
    const SlotStatus after = bench.scheduler->slots()[0];
    EXPECT_FALSE(after.compaction.has_value());
    EXPECT_EQ(after.usage.n_rows, before.usage.n_rows);
    EXPECT_EQ(after.usage.n_compactions, 0);
    EXPECT_FALSE(after.compaction_failure.empty());
  }
  EXPECT_EQ(bench.scheduler->totals().n_compaction_failures, 2);
  Answer<bool> none;
  bench.scheduler->cancel_compaction(0, none.sink());
  EXPECT_FALSE(none.wait().value());
  EXPECT_EQ(bench.run(bench.asking(0)), untouched.run(untouched.asking(0)));
}

TEST(Background, ErasingTheConversationDropsItsCompaction) {
  Bench bench({.n_ctx = 2048, .n_parallel = 2});
  bench.read(bench.ids, 0);
  Answer<CompactionReport> answer;
  Answer<int64_t> erased;
  bench.scheduler->compact(0, slow_request(), answer.sink());
  bench.wait_for(0, is_studying);
  bench.scheduler->erase_slot(0, erased.sink());
  EXPECT_EQ(erased.wait().value(), static_cast<int64_t>(bench.ids.size()));
  ASSERT_FALSE(answer.wait().ok());
  EXPECT_EQ(answer.wait().error().kind, ErrorKind::cancelled);
  EXPECT_NE(answer.wait().error().message.find("cleared"), std::string::npos) << answer.wait().error().message;
  EXPECT_EQ(bench.engine->block_pool().stats().bytes_used, 0) << "the snapshot's memory is given back, too";
  // The next conversation of the slot has nothing to do with it, and may be compacted at once.
  bench.read(bench.ids, 0);
  EXPECT_TRUE(bench.compact(small_request("select"), 0).ok());
}

TEST(Background, AConversationThatIsCutBackKeepsWhatStillFits) {
  Bench bench({.n_ctx = 2048, .n_parallel = 1});
  CompactionRequest request = slow_request();
  request.n_live_suffix = 40;
  const auto prefix = [&](size_t n_cut) {
    return std::vector(bench.ids.begin(), bench.ids.end() - static_cast<std::ptrdiff_t>(n_cut));
  };
  const std::vector<int32_t> other_end = encode(*bench.engine, "quite another end");
  // Behind what is compacted: the snapshot's rows are good up to there.
  bench.read(bench.ids, 0);
  request.self_study.n_conversations = 96;
  Answer<CompactionReport> kept;
  bench.scheduler->compact(0, request, kept.sink());
  bench.wait_for(0, is_compacting);
  bench.read(joined(prefix(20), other_end), 0);
  ASSERT_TRUE(kept.wait().ok()) << kept.wait().error().message;
  const SlotStatus slot = bench.scheduler->slots()[0];
  EXPECT_EQ(slot.n_logical, std::ssize(bench.ids) - 20 + std::ssize(other_end));
  EXPECT_NEAR(slot.usage.n_physical, kept.wait()->rows_after - 20 + static_cast<double>(other_end.size()), 1e-6);
  // Into what is compacted: the result is not wanted any more.
  request.self_study.n_conversations = 20000;
  Answer<CompactionReport> dropped;
  bench.read(joined({bench.ids[0]}, encode(*bench.engine, "a fresh start of something else")), 0);
  bench.read(bench.ids, 0);
  bench.scheduler->compact(0, request, dropped.sink());
  bench.wait_for(0, is_studying);
  bench.read(joined(prefix(100), other_end), 0);
  ASSERT_FALSE(dropped.wait().ok());
  EXPECT_EQ(dropped.wait().error().kind, ErrorKind::cancelled);
  EXPECT_NE(dropped.wait().error().message.find("cut back"), std::string::npos) << dropped.wait().error().message;
  EXPECT_EQ(bench.scheduler->slots()[0].usage.n_compactions, 0);
}

TEST(Background, OneAtATimeOthersWaitAndTheSameSlotIsRefused) {
  Bench bench({.n_ctx = 4096, .n_parallel = 2});
  bench.read(bench.ids, 0);
  bench.read(document_ids(*bench.engine, read_document("512", 1)), 1);
  Answer<CompactionReport> first, second, again;
  CompactionRequest request = slow_request();
  request.self_study.n_conversations = 96;
  bench.scheduler->compact(0, request, first.sink());
  bench.wait_for(0, is_compacting);
  bench.scheduler->compact(1, small_request("select"), second.sink());
  bench.scheduler->compact(0, small_request("select"), again.sink());
  ASSERT_FALSE(again.wait().ok());
  EXPECT_EQ(again.wait().error().kind, ErrorKind::busy);
  EXPECT_NE(again.wait().error().message.find("already compacting"), std::string::npos);
  const auto slots = bench.scheduler->slots();
  if (!first.is_there()) {
    ASSERT_TRUE(slots[1].compaction.has_value());
    EXPECT_EQ(slots[1].compaction->stage, kWaitingStage);
    EXPECT_EQ(slots[1].compaction->fraction, 0);
  }
  EXPECT_TRUE(first.wait().ok());
  EXPECT_TRUE(second.wait().ok());
  EXPECT_EQ(second.wait()->method, "select");
  for (const SlotStatus& slot : bench.scheduler->slots()) EXPECT_EQ(slot.usage.n_compactions, 1);
  // One that waits is cancelled without ever having run.
  bench.scheduler->compact(0, slow_request(), [](const Result<CompactionReport>&) {});
  bench.wait_for(0, is_studying);
  Answer<CompactionReport> waiting;
  const uint64_t id = bench.scheduler->compact(1, small_request("select"), waiting.sink());
  bench.wait_for(1, [](const SlotStatus& slot) { return slot.compaction.has_value(); });
  bench.scheduler->cancel(id);
  EXPECT_EQ(waiting.wait().error().kind, ErrorKind::cancelled);
  EXPECT_EQ(bench.scheduler->slots()[1].usage.n_compactions, 1);
}

TEST(Background, TheEndOfTheSchedulerEndsWhatRunsAndWhatWaits) {
  Answer<CompactionReport> running, waiting;
  Client client;
  {
    Bench bench({.n_ctx = 4096, .n_parallel = 2});
    bench.read(bench.ids, 0);
    bench.read(bench.ids, 1);
    bench.scheduler->compact(0, slow_request(), running.sink());
    bench.scheduler->compact(1, slow_request(), waiting.sink());
    bench.wait_for(0, is_studying);
    GenerationRequest request = bench.asking(0);
    request.id_slot = 0;
    request.ignore_eos = true;
    request.n_predict = -1;
    bench.submit(request, client);
    bench.wait_for(0, [](const SlotStatus& slot) { return slot.is_processing; });
  }
  EXPECT_EQ(running.wait().error().kind, ErrorKind::cancelled);
  EXPECT_EQ(waiting.wait().error().kind, ErrorKind::cancelled);
  EXPECT_EQ(client.last().stop_reason, StopReason::cancelled);
}

// ---- automatic compaction ----

EngineOptions automatic_options() {
  return {.n_ctx = 512,
          .compact_threshold = 0.8,
          .compact_ratio = 3,
          .compact_method = "self_study",
          .compact_options = {{"conversations", "96"}}};
}

TEST(Background, AFactOutlivesManyCycles) {
  Bench bench(automatic_options());
  Dialogue dialogue(bench);
  int n_right = 0;
  // The first fact is asked for at the very end only.
  while (dialogue.n_asked < 200 && (dialogue.compactions.size() < 7 || dialogue.last.n_logical < 4 * 512)) {
    n_right += dialogue.ask(1 + static_cast<size_t>(dialogue.n_asked) % 5);
    EXPECT_FALSE(dialogue.last.is_truncated);
    EXPECT_LE(dialogue.last.n_physical, 512);
  }
  EXPECT_TRUE(dialogue.ask(0));
  EXPECT_GE(dialogue.compactions.size(), 6u);
  EXPECT_GE(dialogue.last.n_logical, 4 * 512);
  EXPECT_GE(n_right, dialogue.n_asked * 9 / 10) << "of " << dialogue.n_asked;
  // Each goes down to the low watermark: the whole cache, rows that stay included.
  for (const CompactionEvent& event : dialogue.compactions) {
    EXPECT_TRUE(event.is_automatic);
    EXPECT_GE(event.report.rows_before, 0.8 * 512);
    EXPECT_NEAR(event.report.rows_after, 0.8 * 512 / 3, 4);
  }
}

TEST(Background, AFullConversationWaitsAndOthersDoNot) {
  EngineOptions options = automatic_options();
  options.compact_threshold = 1.0;
  options.compact_options = {{"conversations", "192"}};
  options.n_ctx = 2 * 512;
  options.n_parallel = 2;
  options.is_kv_unified = false;
  Bench bench(options);
  Talker full(bench, bench.ids, 0);
  std::vector<int32_t> shorter(bench.ids.begin(), bench.ids.begin() + 50);
  ASSERT_TRUE(bench.wait_for(0, is_compacting));
  EXPECT_EQ(bench.scheduler->slots()[0].n_logical, 512);
  const int n_full = full.n_tokens;
  int n_beside = 0;
  {
    Talker beside(bench, shorter, 1);
    beside.wait_for_tokens(5);
    if (bench.scheduler->slots()[0].compaction.has_value()) {
      EXPECT_EQ(full.n_tokens, n_full);
    }
    n_beside = beside.n_tokens;
  }
  EXPECT_GE(n_beside, 5);
  full.wait_for_tokens(5);
  EXPECT_GT(bench.scheduler->slots()[0].n_logical, 512);
  EXPECT_EQ(bench.scheduler->slots()[0].usage.n_compactions, 1);
}

TEST(Background, CancellingARequestCancelsTheCompactionThatItBegan) {
  EngineOptions options = automatic_options();
  options.compact_options = {{"conversations", "20000"}};
  Bench bench(options);
  {
    Talker talker(bench, bench.ids, 0);
    ASSERT_TRUE(bench.wait_for(0, is_studying));
  }
  ASSERT_TRUE(bench.wait_for(0, [](const SlotStatus& slot) { return !slot.compaction.has_value(); }));
  EXPECT_EQ(bench.scheduler->totals().n_compactions, 0);
  EXPECT_FALSE(bench.scheduler->slots()[0].is_processing);
  // Another compaction is not hit by it.
  EXPECT_TRUE(bench.compact(small_request("select")).ok());
}

TEST(Background, DelayedCompactionAsksForWhatTheNextTurnAsks) {
  EngineOptions options = automatic_options();
  options.compact_method = "select";
  options.compact_options = {};
  options.compact_delay = true;
  options.compact_keep = 10;
  options.compact_pinned = {{20, 30}};
  Bench bench(options);
  Dialogue dialogue(bench);
  EXPECT_TRUE(dialogue.ask(1));
  const auto n_first = static_cast<int64_t>(dialogue.tokens.size());
  ASSERT_GE(n_first, 0.8 * 512);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(bench.scheduler->slots()[0].compaction.has_value()) << "put off to the next turn";
  EXPECT_EQ(bench.scheduler->totals().n_compactions, 0);
  dialogue.ask(2);
  bench.wait_for(0, [](const SlotStatus& slot) { return slot.last_compaction != nullptr; });
  const CompactionReport report = bench.scheduler->slots()[0].last_compaction->report;
  EXPECT_TRUE(report.queries.has(compaction::QuerySource::recent));
  ASSERT_EQ(report.condensed.size(), 2u);
  EXPECT_EQ(report.condensed[0].begin, 10);
  EXPECT_EQ(report.condensed[0].end, 20);
  EXPECT_EQ(report.condensed[1].begin, 30);
  EXPECT_EQ(report.condensed[1].end, n_first) << "the turn that asks stays live";
}

// ---- memory and fairness ----

TEST(Background, ACompactionWithoutMemoryEvictsIdleConversations) {
  Bench bench({.n_ctx = 2048, .n_parallel = 3});
  const auto n_ids = static_cast<int64_t>(bench.ids.size());
  // Two documents and a quarter of one: the text that is repeated after the second needs a whole one.
  const PoolFiller filler(bench.engine->block_pool(), n_ids * 9 / 4 * bench.engine->kv_layout().bytes_per_token());
  bench.read(document_ids(*bench.engine, read_document("512", 1)), 0);
  bench.read(bench.ids, 1);
  EXPECT_GT(bench.scheduler->slots()[0].n_logical, 0);
  const auto report = bench.compact(small_request("select"), 1);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(bench.scheduler->slots()[0].n_logical, 0) << "the idle one made room";
  EXPECT_EQ(bench.scheduler->slots()[1].n_logical, n_ids);
  // With nobody to make room it says so, and the conversation stays.
  bench.read(joined(bench.ids, bench.ids), 2);
  const auto refused = bench.compact(small_request("select"), 2);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::out_of_memory);
  EXPECT_EQ(bench.scheduler->slots()[2].n_logical, 2 * n_ids);
  EXPECT_EQ(bench.scheduler->slots()[2].usage.n_compactions, 0);
}

TEST(Background, AForwardThatIsTooSmallForAllStarvesNobody) {
  Bench bench({.n_ctx = 4096, .n_parallel = 5, .n_batch = 2, .n_ubatch = 2});
  const std::vector<int32_t> start(bench.ids.begin(), bench.ids.begin() + 6);
  std::vector<std::unique_ptr<Talker>> talkers;
  for (int32_t slot = 0; slot < 4; ++slot) talkers.push_back(std::make_unique<Talker>(bench, start, slot));
  for (const auto& talker : talkers) talker->wait_for_tokens(3);
  // A prompt gets through although there are more talkers than tokens in a forward, ...
  GenerationRequest request = bench.greedy(std::vector(bench.ids.begin(), bench.ids.begin() + 100), 1);
  request.id_slot = 4;
  EXPECT_EQ(bench.run(request).size(), 1u);
  // ... and all talkers go on evenly.
  const std::vector<int> before = {talkers[0]->n_tokens, talkers[1]->n_tokens, talkers[2]->n_tokens,
                                   talkers[3]->n_tokens};
  talkers[3]->wait_for_tokens(30);
  for (size_t i = 0; i < 4; ++i) EXPECT_GE(talkers[i]->n_tokens - before[i], 25) << i;
}

}  // namespace
}  // namespace sh::engine
