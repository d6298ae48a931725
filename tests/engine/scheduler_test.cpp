// SPDX-License-Identifier: MIT
#include "engine/scheduler.h"

#include <chrono>
#include <cmath>
#include <thread>

#include "engine/scheduler_bench.h"

namespace sh::engine {
namespace {

constexpr int64_t kCaptureBytes = int64_t{64} << 20;  // every token of a test's conversation

/// Rows chosen by the queries that were captured while the conversation was read.
CompactionRequest captured_request() {
  CompactionRequest request = small_request("select");
  request.queries = compaction::QuerySource::prefill;
  return request;
}

// ---- generation ----

TEST(Scheduler, OutputDoesNotDependOnWhatElseRuns) {
  std::vector<std::vector<int32_t>> alone;
  {
    Bench bench({.n_ctx = 2048, .n_parallel = 1});
    for (size_t i = 0; i < 4; ++i) alone.push_back(bench.run(bench.asking(i)));
    EXPECT_EQ(trimmed(text_of(*bench.engine, std::span(alone[0]).first(alone[0].size() - 1))), bench.document.questions[0].answer);
  }
  for (const int32_t n_ubatch : {7, 512}) {
    Bench bench({.n_ctx = 2048, .n_parallel = 4, .n_ubatch = n_ubatch});
    Client clients[4];
    for (size_t i = 0; i < 4; ++i) bench.submit(bench.asking(i), clients[i]);
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(clients[i].ids(), alone[i]) << n_ubatch << " " << i;
    for (Client& client : clients) EXPECT_EQ(client.last().stop_reason, StopReason::eos);
  }
}

TEST(Scheduler, SampledOutputDependsOnTheSeedOnly) {
  Bench bench({.n_ctx = 1024, .n_parallel = 2});
  GenerationRequest request = bench.asking(0);
  request.sampling.temperature = 3.0f;
  request.sampling.seed = 7;
  request.ignore_eos = true;
  const auto first = bench.run(request);
  Client a, b;
  bench.submit(request, a);
  bench.submit(request, b);
  EXPECT_EQ(a.ids(), first);
  EXPECT_EQ(b.ids(), first);
  request.sampling.seed = 8;
  EXPECT_NE(bench.run(request), first);
}

TEST(Scheduler, CountsAndProgress) {
  Bench bench({.n_ctx = 1024, .n_ubatch = 100});
  Client client;
  const uint64_t id = bench.submit(bench.asking(0), client);
  EXPECT_GT(id, 0u);
  const auto n_prompt = static_cast<int64_t>(bench.asking(0).prompt.size());
  int64_t done = -1;
  int n_progress = 0;
  for (const GenerationEvent& event : client.events()) {
    EXPECT_EQ(event.id_slot, 0);
    EXPECT_EQ(event.n_prompt, n_prompt);
    if (!event.is_prompt_progress) continue;
    ++n_progress;
    EXPECT_GT(event.n_prompt_done, done);
    done = event.n_prompt_done;
    EXPECT_TRUE(event.ids.empty());
  }
  EXPECT_EQ(done, n_prompt);
  EXPECT_EQ(n_progress, 1 + (n_prompt + 99) / 100);
  const Timings& timings = client.last().timings;
  EXPECT_EQ(timings.cache_n, 0);
  EXPECT_EQ(timings.prompt_n, n_prompt);
  EXPECT_EQ(timings.predicted_n, static_cast<int64_t>(client.ids().size()));
  EXPECT_GT(timings.prompt_ms, 0);
  EXPECT_GT(client.last().kv_bytes, 0);
  EXPECT_FALSE(client.last().is_truncated);
  const SchedulerTotals totals = bench.scheduler->totals();
  EXPECT_EQ(totals.prompt_tokens, n_prompt);
  EXPECT_EQ(totals.predicted_tokens, timings.predicted_n);
  EXPECT_EQ(totals.requests_processing, 0);
  const auto slots = bench.scheduler->slots();
  ASSERT_EQ(slots.size(), 1u);
  EXPECT_FALSE(slots[0].is_processing);
  EXPECT_EQ(slots[0].n_logical, n_prompt + timings.predicted_n - 1);
  EXPECT_EQ(slots[0].usage.n_logical, slots[0].n_logical);
}

TEST(Scheduler, PredictLimits) {
  Bench bench;
  GenerationEvent last;
  EXPECT_TRUE(bench.run(bench.greedy(bench.ids, 0), &last).empty());
  EXPECT_EQ(last.stop_reason, StopReason::limit);
  EXPECT_EQ(last.n_logical, static_cast<int64_t>(bench.ids.size()));
  EXPECT_EQ(bench.run(bench.greedy(bench.ids, 1), &last).size(), 1u);
  EXPECT_EQ(last.stop_reason, StopReason::limit);
  GenerationRequest request = bench.asking(0);
  request.n_predict = 40;
  request.ignore_eos = true;
  const auto ids = bench.run(request, &last);
  EXPECT_EQ(ids.size(), 40u);
  for (const int32_t id : ids) EXPECT_FALSE(bench.engine->tokenizer().is_end_of_generation(id));
}

TEST(Scheduler, BadRequestsAreRefusedBeforeAnythingRuns) {
  Bench bench({.n_ctx = 256});
  const auto refused = [&](GenerationRequest request) {
    const auto id = bench.scheduler->submit(std::move(request), [](const GenerationEvent&) { ADD_FAILURE() << "an event of a refused request"; });
    EXPECT_FALSE(id.ok());
    return id.ok() ? Error{ErrorKind::io, ""} : id.error();
  };
  EXPECT_EQ(refused(bench.greedy({})).kind, ErrorKind::invalid_argument);
  EXPECT_EQ(refused(bench.greedy({5, -1})).kind, ErrorKind::invalid_argument);
  EXPECT_EQ(refused(bench.greedy({5, 2048})).kind, ErrorKind::invalid_argument);
  GenerationRequest bad_sampling = bench.greedy({5});
  bad_sampling.sampling.top_p = -3;
  EXPECT_EQ(refused(bad_sampling).kind, ErrorKind::invalid_argument);
  const Error too_long = refused(bench.greedy(bench.ids));
  EXPECT_EQ(too_long.kind, ErrorKind::context_exceeded);
  EXPECT_NE(too_long.message.find(std::to_string(bench.ids.size())), std::string::npos);
  EXPECT_NE(too_long.message.find("256"), std::string::npos);
  EXPECT_EQ(bench.scheduler->totals().prompt_tokens, 0);
}

TEST(Scheduler, AFullContextEndsTheGeneration) {
  Bench bench({.n_ctx = 450});
  GenerationRequest request = bench.asking(0);
  request.n_predict = -1;
  request.ignore_eos = true;
  GenerationEvent last;
  const auto ids = bench.run(request, &last);
  EXPECT_EQ(last.stop_reason, StopReason::context_full);
  EXPECT_TRUE(last.is_truncated);
  EXPECT_EQ(last.n_logical, 450);
  EXPECT_EQ(request.prompt.size() + ids.size(), 451u);  // the last token is not fed
}

TEST(Scheduler, StopWordsMayCrossTokens) {
  Bench bench;
  const std::vector<int32_t> prompt = joined(bench.ids, encode(*bench.engine, "\n\nThe "));
  GenerationRequest request = bench.greedy(prompt, 16);
  request.ignore_eos = true;
  const std::vector<int32_t> ids = bench.run(request);
  ASSERT_EQ(ids.size(), 16u);
  std::string whole;
  for (const int32_t id : ids) whole += bench.engine->tokenizer().piece(id, false);
  // The last byte of the sixth token and the first of the seventh, when that occurs nowhere before.
  size_t border = 0;
  for (int i = 0; i < 6; ++i) border += bench.engine->tokenizer().piece(ids[static_cast<size_t>(i)], false).size();
  size_t width = 1;
  while (whole.find(whole.substr(border - width, 2 * width)) != border - width) ++width;
  const std::string stop = whole.substr(border - width, 2 * width);
  request.stop = {"never said", stop};
  Client client;
  bench.submit(request, client);
  EXPECT_EQ(client.text(), whole.substr(0, border - width));
  EXPECT_EQ(client.last().stop_reason, StopReason::word);
  EXPECT_EQ(client.last().stopping_word, stop);
  // What was held back as a possible beginning of a stop word is told in the end.
  request.stop = {whole.substr(whole.size() - 1) + "##"};
  Client held;
  bench.submit(request, held);
  EXPECT_EQ(held.text(), whole);
  EXPECT_EQ(held.last().stop_reason, StopReason::limit);
}

TEST(Scheduler, LogProbabilities) {
  Bench bench;
  GenerationRequest request = bench.asking(0);
  request.n_probs = 5;
  Client client;
  bench.submit(request, client);
  size_t n = 0;
  for (const GenerationEvent& event : client.events()) {
    if (event.is_prompt_progress) continue;
    ASSERT_EQ(event.probs.size(), event.ids.size());
    for (size_t i = 0; i < event.ids.size(); ++i, ++n) {
      const TokenProbs& probs = event.probs[i];
      EXPECT_EQ(probs.id, event.ids[i]);
      ASSERT_EQ(probs.top.size(), 5u);
      EXPECT_EQ(probs.top[0].first, probs.id);  // greedy
      EXPECT_EQ(probs.top[0].second, probs.logprob);
      double sum = 0;
      for (size_t k = 0; k < 5; ++k) {
        sum += std::exp(probs.top[k].second);
        EXPECT_LE(probs.top[k].second, probs.top[k == 0 ? 0 : k - 1].second);
      }
      EXPECT_LE(sum, 1.0 + 1e-5);
      EXPECT_GT(sum, 0.2);
    }
  }
  EXPECT_EQ(n, client.ids().size());
}

// ---- prefix reuse ----

TEST(Scheduler, ASecondTurnReadsOnlyWhatIsNew) {
  Bench bench;
  const GenerationRequest first = bench.asking(0);
  const auto reply = bench.run(first);
  const auto cached = Bench::conversation(first.prompt, reply);
  const auto next = joined(encode(*bench.engine, "<|end|>"), question_ids(*bench.engine, bench.document.questions[1].text));
  GenerationEvent last;
  const auto second_reply = bench.run(bench.greedy(joined(cached, next)), &last);
  EXPECT_EQ(last.timings.cache_n, static_cast<int64_t>(cached.size()));
  EXPECT_EQ(last.timings.prompt_n, static_cast<int64_t>(next.size()));
  Bench fresh;
  GenerationRequest uncached = fresh.greedy(joined(cached, next));
  EXPECT_EQ(fresh.run(uncached, &last), second_reply);
  EXPECT_EQ(last.timings.cache_n, 0);
  // Without cache_prompt everything is read again, with the same result.
  uncached.cache_prompt = false;
  EXPECT_EQ(fresh.run(uncached, &last), second_reply);
  EXPECT_EQ(last.timings.cache_n, 0);
}

TEST(Scheduler, ADivergingPromptKeepsTheSharedStart) {
  Bench bench;
  bench.run(bench.asking(0));
  GenerationEvent last;
  const auto reply = bench.run(bench.asking(1), &last);
  EXPECT_GE(last.timings.cache_n, static_cast<int64_t>(bench.ids.size()));
  EXPECT_LT(last.timings.cache_n, static_cast<int64_t>(bench.asking(1).prompt.size()));
  Bench fresh;
  EXPECT_EQ(fresh.run(fresh.asking(1)), reply);
  // The same prompt once more: its last token is read again, because its logits are needed.
  EXPECT_EQ(bench.run(bench.asking(1), &last), reply);
  EXPECT_EQ(last.timings.prompt_n, 1);
}

TEST(Scheduler, RequestsFindTheSlotThatKnowsThem) {
  Bench bench({.n_ctx = 2048, .n_parallel = 2});
  const Document other = read_document("512", 1);
  const auto other_ids = document_ids(*bench.engine, other);
  GenerationEvent last;
  bench.run(bench.asking(0), &last);
  const int32_t first_slot = last.id_slot;
  bench.run(bench.greedy(joined(other_ids, question_ids(*bench.engine, other.questions[0].text))), &last);
  EXPECT_NE(last.id_slot, first_slot);
  bench.run(bench.asking(1), &last);
  EXPECT_EQ(last.id_slot, first_slot);
  EXPECT_GE(last.timings.cache_n, static_cast<int64_t>(bench.ids.size()));
  GenerationRequest fixed = bench.asking(2);
  fixed.id_slot = 1 - first_slot;
  bench.run(fixed, &last);
  EXPECT_EQ(last.id_slot, 1 - first_slot);
  EXPECT_LT(last.timings.cache_n, 10);
}

// A prompt that shares only its first tokens with a long conversation does not end it while another slot is empty.
TEST(Scheduler, AnEmptySlotIsTakenBeforeAConversationIsGivenUp) {
  Bench bench({.n_ctx = 2048, .n_parallel = 2});
  GenerationEvent last;
  bench.run(bench.asking(0), &last);
  const int32_t first_slot = last.id_slot;
  const std::vector<int32_t> start(bench.ids.begin(), bench.ids.begin() + 4);  // all but one are in the cache
  bench.run(bench.greedy(start, 1), &last);
  EXPECT_EQ(last.id_slot, 1 - first_slot);
  EXPECT_GT(bench.scheduler->slots()[static_cast<size_t>(first_slot)].n_logical, 100);
  bench.run(bench.asking(1), &last);
  EXPECT_EQ(last.id_slot, first_slot) << "what goes on still finds its slot";
  EXPECT_GE(last.timings.cache_n, static_cast<int64_t>(bench.ids.size()));
  // An erased slot was used after the other, but is empty.
  Answer<int64_t> erased;
  GenerationRequest fixed = bench.greedy(start, 1);
  fixed.id_slot = 1 - first_slot;
  bench.run(fixed);
  bench.scheduler->erase_slot(1 - first_slot, erased.sink());
  ASSERT_TRUE(erased.wait().ok());
  bench.run(bench.greedy({bench.ids[7], bench.ids[8]}, 1), &last);
  EXPECT_EQ(last.id_slot, 1 - first_slot);
}

// ---- compaction of slots ----

TEST(Scheduler, TheConversationGoesOnOverCompactedRows) {
  Bench bench;
  const GenerationRequest first = bench.asking(1);
  const auto cached = Bench::conversation(first.prompt, bench.run(first));
  const auto report = bench.compact(small_request("self_study"));
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->n_logical, static_cast<int64_t>(cached.size()));
  EXPECT_EQ(bench.scheduler->slots()[0].n_logical, static_cast<int64_t>(cached.size()));
  EXPECT_LT(bench.scheduler->slots()[0].usage.n_physical * 3, static_cast<double>(cached.size()));
  EXPECT_TRUE(bench.scheduler->slots()[0].last_compaction != nullptr);
  EXPECT_EQ(bench.scheduler->totals().n_compactions, 1);
  // The fact was read once, before the compaction; the second turn reads its own tokens only.
  const auto next = joined(encode(*bench.engine, "<|end|>"), question_ids(*bench.engine, bench.document.questions[0].text));
  GenerationEvent last;
  EXPECT_EQ(bench.run_text(bench.greedy(joined(cached, next)), &last), bench.document.questions[0].answer);
  EXPECT_EQ(last.timings.cache_n, static_cast<int64_t>(cached.size()));
  EXPECT_EQ(last.timings.prompt_n, static_cast<int64_t>(next.size()));
  EXPECT_LT(last.n_physical * 2, static_cast<double>(last.n_logical));
  EXPECT_FALSE(last.is_truncated);
}

TEST(Scheduler, OtherPromptsAfterACompactionAreReadAfresh) {
  Bench fresh({.n_ctx = 1024}), bench({.n_ctx = 1024});
  const std::vector<int32_t> bos_only = joined({bench.ids[0]}, encode(*bench.engine, "<|user|>Hello there, who are you?<|end|><|assistant|>"));
  const auto expected_bos = fresh.run(fresh.greedy(bos_only));
  const auto expected_all = fresh.run(fresh.asking(0));

  const auto compact = [&] { ASSERT_TRUE(bench.compact(small_request("truncate", 8)).ok()); };
  GenerationEvent last;
  // Sharing only BOS.
  bench.run(bench.asking(0));
  compact();
  EXPECT_EQ(bench.run(bench.greedy(bos_only), &last), expected_bos);
  EXPECT_EQ(last.timings.cache_n, 0);
  EXPECT_EQ(bench.scheduler->slots()[0].usage.n_compactions, 0);
  // Cut back into the compacted span: the early fact must be found again.
  bench.run(bench.asking(0));
  compact();
  EXPECT_EQ(bench.run(bench.asking(0), &last), expected_all);
  EXPECT_EQ(last.timings.cache_n, 0);
  // Sharing everything and going on.
  const auto cached = Bench::conversation(bench.asking(0).prompt, expected_all);
  compact();
  bench.run(bench.greedy(joined(cached, question_ids(*bench.engine, "Who?"))), &last);
  EXPECT_EQ(last.timings.cache_n, static_cast<int64_t>(cached.size()));
  EXPECT_GT(bench.scheduler->slots()[0].usage.n_compactions, 0);
}

// A prompt that shares a start with a compacted slot cannot use it: it must not destroy it while another slot is free.
TEST(Scheduler, ACompactedConversationIsNotGivenUpForAPrefixItCannotServe) {
  Bench bench({.n_ctx = 2048, .n_parallel = 2});
  GenerationEvent last;
  bench.run(bench.asking(0), &last);
  const int32_t slot = last.id_slot;
  const int64_t n_logical = last.n_logical;
  ASSERT_TRUE(bench.compact(small_request("select"), slot).ok());
  bench.run(bench.asking(1), &last);
  EXPECT_NE(last.id_slot, slot);
  EXPECT_EQ(bench.scheduler->slots()[static_cast<size_t>(slot)].n_logical, n_logical);
  EXPECT_EQ(bench.scheduler->slots()[static_cast<size_t>(slot)].usage.n_compactions, 1);
}

// Slots share batches; each captures the queries of its own rows only.
TEST(Scheduler, CapturedQueriesAreThoseOfTheSlot) {
  const Document other = read_document("512", 1);
  const auto other_request = [&](const Bench& bench) { return bench.greedy(joined(document_ids(*bench.engine, other), question_ids(*bench.engine, other.questions[0].text))); };
  std::vector<std::vector<int64_t>> alone, together;
  std::vector<double> alone_error, together_error;
  for (int i = 0; i < 2; ++i) {
    Bench bench({.n_ctx = 1024, .capture_bytes = kCaptureBytes});
    bench.run(i == 0 ? bench.asking(0) : other_request(bench));
    const auto report = bench.compact(captured_request()).value();
    alone.push_back(kept_rows(report));
    alone_error.push_back(report.heldout_plain);
  }
  Bench bench({.n_ctx = 2048, .n_parallel = 2, .n_ubatch = 300, .capture_bytes = kCaptureBytes});
  Client clients[2];
  for (int i = 0; i < 2; ++i) {
    GenerationRequest request = i == 0 ? bench.asking(0) : other_request(bench);
    request.id_slot = i;
    bench.submit(std::move(request), clients[i]);
  }
  for (int i = 0; i < 2; ++i) {
    clients[i].last();
    const auto report = bench.compact(captured_request(), i).value();
    EXPECT_EQ(report.queries, compaction::QuerySource::prefill);
    together.push_back(kept_rows(report));
    together_error.push_back(report.heldout_plain);
  }
  EXPECT_EQ(together, alone);
  EXPECT_EQ(together_error, alone_error);
}

TEST(Scheduler, CommandsThatCannotWork) {
  Bench bench;
  const auto kind_of = [](const Result<CompactionReport>& result) { return result.ok() ? ErrorKind::io : result.error().kind; };
  EXPECT_EQ(kind_of(bench.compact(small_request("select"))), ErrorKind::invalid_argument);  // an empty slot
  EXPECT_EQ(kind_of(bench.compact(small_request("select"), 1)), ErrorKind::invalid_argument);
  EXPECT_EQ(kind_of(bench.compact(small_request("select"), -1)), ErrorKind::invalid_argument);
  bench.run(bench.greedy(bench.ids, 0));
  EXPECT_EQ(kind_of(bench.compact(small_request("no such"))), ErrorKind::not_found);
  EXPECT_EQ(kind_of(bench.compact(small_request("select", 0.5))), ErrorKind::invalid_argument);
  EXPECT_EQ(bench.scheduler->totals().n_compaction_failures, 3);
  EXPECT_EQ(bench.scheduler->totals().n_compactions, 0);
  EXPECT_EQ(bench.scheduler->slots()[0].n_logical, static_cast<int64_t>(bench.ids.size()));
  Answer<int64_t> erased;
  bench.scheduler->erase_slot(7, erased.sink());
  EXPECT_EQ(erased.wait().error().kind, ErrorKind::invalid_argument);
}

TEST(Scheduler, EraseGivesTheMemoryBack) {
  Bench bench;
  bench.run(bench.greedy(bench.ids, 0));
  EXPECT_GT(bench.engine->block_pool().stats().bytes_used, 0);
  Answer<int64_t> erased;
  bench.scheduler->erase_slot(0, erased.sink());
  EXPECT_EQ(erased.wait().value(), static_cast<int64_t>(bench.ids.size()));
  EXPECT_EQ(bench.engine->block_pool().stats().bytes_used, 0);
  EXPECT_EQ(bench.scheduler->slots()[0].n_logical, 0);
  GenerationEvent last;
  EXPECT_EQ(bench.run_text(bench.asking(0), &last), bench.document.questions[0].answer);
  EXPECT_EQ(last.timings.cache_n, 0);
}

// ---- cancelling ----

TEST(Scheduler, CancelInTheMiddleOfThePrompt) {
  Bench bench({.n_ctx = 1024, .n_ubatch = 16});
  Client client;
  std::atomic<uint64_t> id{0};
  client.on_event = [&](const GenerationEvent& event) {
    if (event.is_prompt_progress && event.n_prompt_done >= 32) bench.scheduler->cancel(id);
  };
  id = bench.scheduler->submit(bench.asking(0), client.sink()).value();
  EXPECT_EQ(client.last().stop_reason, StopReason::cancelled);
  EXPECT_LT(client.last().n_prompt_done, static_cast<int64_t>(bench.ids.size()));
  EXPECT_TRUE(client.ids().empty());
  // What was read stays usable.
  GenerationEvent last;
  EXPECT_EQ(bench.run_text(bench.asking(0), &last), bench.document.questions[0].answer);
  EXPECT_EQ(last.timings.cache_n, client.last().n_prompt_done);
}

TEST(Scheduler, CancelWhileDecodingAndWhileWaiting) {
  Bench bench;
  Client running, waiting;
  GenerationRequest request = bench.asking(0);
  request.n_predict = -1;
  request.ignore_eos = true;
  request.id_slot = 0;
  std::atomic<uint64_t> id{0};
  std::atomic<bool> is_waiting_cancelled{false};
  running.on_event = [&](const GenerationEvent& event) {
    // Holds the scheduler's thread until the other request came and was cancelled: it cannot have run before.
    while (event.timings.predicted_n == 1 && !is_waiting_cancelled) std::this_thread::yield();
    if (event.timings.predicted_n == 3) bench.scheduler->cancel(id);
  };
  id = bench.scheduler->submit(request, running.sink()).value();
  GenerationRequest other = bench.asking(1);
  other.id_slot = 0;
  const uint64_t id_waiting = bench.submit(other, waiting);
  bench.scheduler->cancel(id_waiting);
  bench.scheduler->cancel(123456);  // nobody's
  is_waiting_cancelled = true;
  EXPECT_EQ(running.last().stop_reason, StopReason::cancelled);
  EXPECT_EQ(running.ids().size(), 3u);
  EXPECT_EQ(waiting.last().stop_reason, StopReason::cancelled);
  EXPECT_EQ(bench.run_text(bench.asking(1)), bench.document.questions[1].answer);
}

TEST(Scheduler, TheEndOfTheSchedulerEndsEverything) {
  Client clients[4];
  Answer<CompactionReport> compaction;
  Answer<int64_t> erased;
  {
    Bench bench({.n_ctx = 4096, .n_parallel = 2, .n_ubatch = 64});
    GenerationRequest request = bench.asking(0);
    request.n_predict = -1;
    request.ignore_eos = true;
    std::atomic<bool> has_begun{false};
    clients[0].on_event = [&](const GenerationEvent& event) { has_begun = has_begun || !event.ids.empty(); };
    for (Client& client : clients) {
      request.id_slot = 0;  // one runs, the others wait
      bench.submit(request, client);
    }
    while (!has_begun) std::this_thread::yield();
    bench.scheduler->compact(0, slow_request(), compaction.sink());
    bench.scheduler->erase_slot(0, erased.sink());
    bench.scheduler.reset();
    for (Client& client : clients) client.on_event = {};
  }
  for (Client& client : clients) EXPECT_EQ(client.last().stop_reason, StopReason::cancelled);
  EXPECT_EQ(compaction.wait().error().kind, ErrorKind::cancelled);
  EXPECT_EQ(erased.wait().error().kind, ErrorKind::cancelled);
  // At once after submitting, before the scheduler's thread has seen anything.
  for (int i = 0; i < 20; ++i) {
    Client client;
    Answer<CompactionReport> late;
    {
      Bench bench({.n_ctx = 512});
      bench.submit(bench.asking(0), client);
      bench.scheduler->compact(0, small_request("select"), late.sink());
    }
    EXPECT_EQ(client.last().stop_reason, StopReason::cancelled);
    EXPECT_FALSE(late.wait().ok());
  }
}

TEST(Scheduler, CancelAllEndsWhatRunsAndTheSchedulerGoesOn) {
  Bench bench({.n_ctx = 32768, .n_parallel = 2, .n_ubatch = 64});
  bench.run(bench.asking(0));
  GenerationRequest request = bench.asking(0);
  request.n_predict = -1;
  request.ignore_eos = true;
  request.id_slot = 1;
  Client clients[2];
  for (Client& client : clients) bench.submit(request, client);  // one runs, the other waits
  Answer<CompactionReport> compaction;
  bench.scheduler->compact(0, slow_request(), compaction.sink());
  ASSERT_TRUE(
      bench.wait_for(0, [](const SlotStatus& s) { return s.compaction && s.compaction->stage == "queries"; }));
  bench.scheduler->cancel_all();
  for (Client& client : clients) EXPECT_EQ(client.last().stop_reason, StopReason::cancelled);
  EXPECT_EQ(compaction.wait().error().kind, ErrorKind::cancelled);
  EXPECT_NE(compaction.wait().error().message.find("shutting down"), std::string::npos);
  EXPECT_FALSE(bench.run(bench.asking(0)).empty());
}

// ---- memory ----

TEST(Scheduler, ASpentPoolEvictsIdleConversations) {
  auto engine = open_scribe({.n_ctx = 2048, .n_parallel = 2, .capture_bytes = kCaptureBytes});
  const int64_t token_bytes = engine->kv_layout().bytes_per_token();
  const PoolFiller filler(engine->block_pool(), 700 * token_bytes);  // one document and a half
  Scheduler scheduler(*engine);
  const Document documents[2] = {read_document("512", 0), read_document("512", 1)};
  for (int i = 0; i < 2; ++i) {
    Client client;
    GenerationRequest request{.prompt = joined(document_ids(*engine, documents[i]), question_ids(*engine, documents[i].questions[0].text)), .n_predict = 24, .id_slot = i};
    request.sampling.temperature = 0;
    ASSERT_TRUE(scheduler.submit(request, client.sink()).ok());
    EXPECT_EQ(client.last().stop_reason, StopReason::eos);
    EXPECT_EQ(trimmed(client.text()), documents[i].questions[0].answer);
  }
  EXPECT_EQ(scheduler.slots()[0].n_logical, 0);
  const int64_t n_logical = scheduler.slots()[1].n_logical;
  EXPECT_GT(n_logical, 400);
  // The forward that failed left nothing among the captured queries: two query heads a KV head and sampled token, none twice.
  Answer<CompactionReport> answer;
  CompactionRequest compaction = captured_request();
  compaction.fit = compaction::Fit::biases;  // a fit's report counts all queries
  scheduler.compact(1, compaction, answer.sink());
  ASSERT_TRUE(answer.wait().ok()) << answer.wait().error().message;
  EXPECT_EQ(answer.wait()->queries, compaction::QuerySource::prefill);
  EXPECT_EQ(answer.wait()->n_queries, 2 * ((n_logical + kReadingStride - 1) / kReadingStride));
}

TEST(Scheduler, APoolThatIsTooSmallFailsTheRequestAndNothingElse) {
  auto engine = open_scribe({.n_ctx = 2048, .n_parallel = 2, .n_ubatch = 64});
  const PoolFiller filler(engine->block_pool(), 300 * engine->kv_layout().bytes_per_token());
  Scheduler scheduler(*engine);
  const Document document = read_document("512", 0);
  GenerationRequest too_long{.prompt = document_ids(*engine, document), .n_predict = 4};
  too_long.sampling.temperature = 0;
  GenerationRequest short_one = too_long;
  short_one.prompt.resize(100);
  for (int round = 0; round < 2; ++round) {
    Client failing, fine;
    ASSERT_TRUE(scheduler.submit(too_long, failing.sink()).ok());
    EXPECT_EQ(failing.last().stop_reason, StopReason::failed);
    ASSERT_TRUE(failing.last().error.has_value());
    EXPECT_EQ(failing.last().error->kind, ErrorKind::out_of_memory);
    ASSERT_TRUE(scheduler.submit(short_one, fine.sink()).ok());
    EXPECT_EQ(fine.last().stop_reason, StopReason::limit);
    EXPECT_EQ(fine.ids().size(), 4u);
  }
}

// ---- automatic compaction ----

EngineOptions automatic_options() {
  return {.n_ctx = 512, .compact_threshold = 0.8, .compact_ratio = 3, .compact_method = "self_study"};
}

TEST(Scheduler, AConversationOutgrowsItsContext) {
  EngineOptions options = automatic_options();
  options.compact_options = {{"reread", "1"}};  // of a short text: a sample of it would miss facts
  Bench bench(options);
  std::vector<int32_t> conversation = bench.ids;
  std::vector<CompactionEvent> compactions;
  int n_right = 0, n_asked = 0;
  // The first question is asked last, when its fact lies behind every compaction.
  const size_t order[] = {1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 0};
  std::string last_answer;
  GenerationEvent last;
  for (const size_t i : order) {
    const auto next = joined(n_asked == 0 ? std::vector<int32_t>{} : encode(*bench.engine, "<|end|>"),
                             question_ids(*bench.engine, bench.document.questions[i].text));
    const auto n_before = static_cast<int64_t>(conversation.size());
    conversation = joined(conversation, next);
    Client client;
    bench.submit(bench.greedy(conversation), client);
    last = client.last();
    ASSERT_EQ(last.stop_reason, StopReason::eos) << (last.error ? last.error->message : "");
    EXPECT_FALSE(last.is_truncated);
    EXPECT_EQ(last.timings.cache_n, n_asked == 0 ? 0 : n_before) << "nothing may be read twice";
    for (CompactionEvent& event : client.compactions()) compactions.push_back(std::move(event));
    conversation = Bench::conversation(conversation, client.ids());
    last_answer = trimmed(client.text());
    ++n_asked;
    n_right += last_answer == bench.document.questions[i].answer;
  }
  EXPECT_GT(last.n_logical, 512);
  EXPECT_LE(last.n_physical, 512);
  EXPECT_GE(compactions.size(), 1u);
  for (const CompactionEvent& event : compactions) {
    EXPECT_TRUE(event.is_automatic);
    EXPECT_EQ(event.report.method, "self_study");
    EXPECT_LT(event.report.rows_after, event.report.rows_before);
  }
  EXPECT_EQ(last_answer, bench.document.questions[0].answer);
  EXPECT_GE(n_right, 10) << "of " << n_asked;
  // One that ended behind the last request is told with the next.
  EXPECT_LE(bench.scheduler->totals().n_compactions - static_cast<int64_t>(compactions.size()), 1);
}

TEST(Scheduler, APromptLongerThanTheRowsIsCompactedWhileItIsRead) {
  EngineOptions options = automatic_options();
  options.compact_method = "select";
  Bench bench(options);
  const Document document = read_document("1024", 0);
  const auto ids = document_ids(*bench.engine, document);
  ASSERT_GT(ids.size(), 900u);
  Client client;
  bench.submit(bench.greedy(joined(ids, question_ids(*bench.engine, document.questions[0].text))), client);
  EXPECT_EQ(client.last().stop_reason, StopReason::eos) << (client.last().error ? client.last().error->message : "");
  EXPECT_FALSE(client.last().is_truncated);
  EXPECT_GE(client.compactions().size(), 1u);
  EXPECT_GT(client.last().n_logical, 900);
  EXPECT_LE(client.last().n_physical, 512);
}

TEST(Scheduler, ProtectedPromptsAreNotCompacted) {
  EngineOptions options = automatic_options();
  options.compact_method = "select";
  Bench bench(options);
  GenerationRequest request = bench.asking(0);
  request.n_keep = -1;
  request.n_predict = 300;  // the prompt alone fills most of the rows
  request.ignore_eos = true;
  Client client;
  bench.submit(request, client);
  EXPECT_EQ(client.last().stop_reason, StopReason::limit);
  EXPECT_GT(client.compactions().size(), 1u);
  EXPECT_GE(bench.scheduler->slots()[0].usage.n_rows, static_cast<int64_t>(request.prompt.size()) * 10);
  // Little can be gained, and it is not tried again for every token.
  const SchedulerTotals totals = bench.scheduler->totals();
  EXPECT_LT(totals.n_compactions + totals.n_compaction_failures, client.last().timings.predicted_n / 8);
}

// Protected rows fill everything, so that nothing can be freed: the request ends with what it has.
TEST(Scheduler, RowsThatCannotBeFreedEndTheRequest) {
  EngineOptions options = automatic_options();
  options.n_ctx = 460;
  Bench bench(options);
  GenerationRequest request = bench.asking(0);
  request.n_keep = -1;
  request.ignore_eos = true;
  request.n_predict = 2000;
  GenerationEvent last;
  const auto ids = bench.run(request, &last);
  EXPECT_EQ(last.stop_reason, StopReason::context_full);
  EXPECT_GT(ids.size(), 10u);
  request.prompt = joined(bench.ids, bench.ids);  // more than all rows
  EXPECT_TRUE(bench.run(request, &last).empty());
  EXPECT_EQ(last.stop_reason, StopReason::failed);
  ASSERT_TRUE(last.error.has_value());
  EXPECT_EQ(last.error->kind, ErrorKind::context_exceeded);
}

TEST(Scheduler, TheFlagsThatHoldAFullCacheAreNamed) {
  EngineOptions options = automatic_options();
  options.n_ctx = 460;
  options.compact_method = "select";
  options.compact_pinned = {{0, 300}, {310, 455}};
  Bench bench(options);
  GenerationEvent last;
  bench.run(bench.greedy(joined(bench.ids, bench.ids)), &last);
  ASSERT_TRUE(last.error.has_value());
  EXPECT_NE(last.error->message.find("pin less (--compact-pin holds 445 tokens)"), std::string::npos)
      << last.error->message;
  EXPECT_EQ(last.error->message.find("--compact-keep"), std::string::npos) << last.error->message;
  EXPECT_NE(last.error->message.find("raise -c"), std::string::npos) << last.error->message;
}

// Of a conversation that goes on -1 means its first prompt, not all that each later request brings.
TEST(Scheduler, TheFirstPromptIsKeptAndNotEveryOne) {
  EngineOptions options = automatic_options();
  options.compact_method = "select";
  Bench bench(options);
  std::vector<int32_t> conversation(bench.ids.begin(), bench.ids.begin() + 150);
  GenerationEvent last;
  for (int turn = 0; turn < 6; ++turn) {
    GenerationRequest request = bench.greedy(conversation, 80);
    request.n_keep = -1;
    request.ignore_eos = true;
    const auto answer = bench.run(request, &last);
    ASSERT_EQ(last.stop_reason, StopReason::limit) << (last.error ? last.error->message : "");
    conversation = Bench::conversation(conversation, answer);
    conversation.insert(conversation.end(), bench.ids.begin(), bench.ids.begin() + 20);
  }
  const SlotStatus slot = bench.scheduler->slots()[0];
  EXPECT_GT(slot.n_logical, 600);
  ASSERT_TRUE(slot.last_compaction);
  EXPECT_EQ(slot.last_compaction->report.condensed.front().begin, 150);
}

// The whole conversation was compacted, the last question too: the next one cannot go on from the document.
TEST(Scheduler, APromptThatLeavesACompactedConversationIsLogged) {
  Bench bench({.n_ctx = 2048, .n_parallel = 2});
  bench.run(bench.asking(0));
  ASSERT_TRUE(bench.compact(small_request("select")).ok());
  const LogLevel level = log_level();
  set_log_level(LogLevel::info);
  testing::internal::CaptureStderr();
  GenerationEvent last;
  bench.run(bench.asking(1), &last);
  const std::string log = testing::internal::GetCapturedStderr();
  set_log_level(level);
  EXPECT_EQ(last.timings.cache_n, 0);
  EXPECT_NE(log.find("slot 0: a prompt shares "), std::string::npos) << log;
  EXPECT_NE(log.find("live_suffix_tokens"), std::string::npos) << log;
}

TEST(Scheduler, WhatARequestHoldsIsNamed) {
  EngineOptions options = automatic_options();
  options.n_ctx = 460;
  options.compact_method = "select";
  Bench bench(options);
  GenerationRequest request = bench.greedy(joined(bench.ids, bench.ids));
  request.n_keep = 455;
  GenerationEvent last;
  bench.run(request, &last);
  ASSERT_TRUE(last.error.has_value());
  EXPECT_NE(last.error->message.find("keep less (--keep, n_keep in a request, holds 455 tokens)"),
            std::string::npos)
      << last.error->message;
}

// At a threshold of 1 the rows are full before the compaction is due.
TEST(Scheduler, AThresholdOfOneStillCompacts) {
  EngineOptions options = automatic_options();
  options.compact_method = "streaming";
  options.compact_threshold = 1.0;
  Bench bench(options);
  GenerationRequest request = bench.asking(0);
  request.n_predict = 200;
  request.ignore_eos = true;
  Client client;
  bench.submit(request, client);
  EXPECT_EQ(client.last().stop_reason, StopReason::limit);
  EXPECT_GE(client.compactions().size(), 1u);
}

TEST(Scheduler, ManyThreadsMayCall) {
  Bench bench({.n_ctx = 2048, .n_parallel = 3, .n_ubatch = 64});
  const auto expected = bench.run(bench.asking(0));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 3; ++i) {
        Client client;
        const uint64_t id = bench.submit(bench.asking(0), client);
        if (t == 3) bench.scheduler->cancel(id);
        (void)bench.scheduler->slots();
        (void)bench.scheduler->totals();
        if (t == 2) {
          Answer<CompactionReport> answer;
          bench.scheduler->compact(i, small_request("truncate", 1.0), answer.sink());  // keeps all, answers stay
          answer.wait();
        }
        const GenerationEvent& last = client.last();
        if (last.stop_reason == StopReason::cancelled) continue;
        EXPECT_EQ(client.ids(), expected);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace sh::engine
