// SPDX-License-Identifier: MIT
#include "engine/prompt_allowance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>

#include "engine/scheduler_bench.h"

namespace sh::engine {
namespace {

constexpr double kGoal = 0.15;
constexpr int64_t kMax = 512;

/// Takes steps of what is allowed, `fixed` seconds and `each` a prompt token; gives the last one's tokens.
int64_t after_steps(PromptAllowance& allowance, int n_steps, double fixed, double each) {
  for (int i = 0; i < n_steps; ++i) {
    const int64_t n = allowance.n_tokens();
    EXPECT_GE(n, PromptAllowance::kMinTokens);
    EXPECT_LE(n, kMax);
    allowance.note(n, fixed + each * static_cast<double>(n));
  }
  return allowance.n_tokens();
}

TEST(PromptAllowance, StepsComeToLastAsLongAsTheGoal) {
  PromptAllowance allowance(kGoal, kMax);
  EXPECT_EQ(allowance.n_tokens(), PromptAllowance::kMinTokens) << "nothing is known yet";
  for (const double fixed : {0.0, 0.01, 0.07})
    for (const double each : {0.002, 0.0005, 0.003}) {
      const auto n = static_cast<double>(after_steps(allowance, 20, fixed, each));
      EXPECT_NEAR(fixed + each * n, kGoal, 2 * each) << fixed << " " << each;
    }
}

TEST(PromptAllowance, DearTokensMakeItSmallAndCheapOnesLarge) {
  PromptAllowance allowance(kGoal, kMax);
  const int64_t n_before = after_steps(allowance, 10, 0.01, 0.001);
  EXPECT_LT(after_steps(allowance, 1, 0.01, 0.004), n_before);
  EXPECT_LE(after_steps(allowance, 3, 0.01, 0.004), 45) << "35 would last as long as the goal";
  EXPECT_EQ(after_steps(allowance, 10, 0.01, 1.0), PromptAllowance::kMinTokens);
  EXPECT_EQ(after_steps(allowance, 20, 10.0, 0.001), PromptAllowance::kMinTokens) << "a decode alone takes longer";
  EXPECT_EQ(after_steps(allowance, 40, 0.0, 1e-6), kMax);
  EXPECT_EQ(after_steps(allowance, 40, 0.0, 0.0), kMax) << "too short for the clock";
}

TEST(PromptAllowance, TheEndOfAPromptSaysNothingOfItsCost) {
  PromptAllowance allowance(kGoal, kMax);
  const int64_t n = after_steps(allowance, 10, 0.01, 0.001);
  for (int i = 0; i < 10; ++i) allowance.note(1, 0.01);
  allowance.note(0, 0.01);
  EXPECT_EQ(allowance.n_tokens(), n);
}

TEST(PromptAllowance, NeverMoreThanAForwardTakesAndNoGoalIsNoLimit) {
  PromptAllowance narrow(kGoal, 4);
  EXPECT_EQ(narrow.n_tokens(), 4);
  narrow.note(4, 100.0);
  EXPECT_EQ(narrow.n_tokens(), 4);
  PromptAllowance unlimited(0, kMax);
  EXPECT_EQ(unlimited.n_tokens(), kMax);
  unlimited.note(kMax, 100.0);
  EXPECT_EQ(unlimited.n_tokens(), kMax);
}

// ---- in the scheduler, whose clock says that every step lasts `step_us` ----

class MixedSteps : public ::testing::Test {
 protected:
  /// Of one event: a token of the conversation that decodes, or prompt tokens that a reader got.
  struct Entry {
    int reader;  // -1: the token
    int64_t n = 1;
  };

  void open(EngineOptions options) {
    options.n_ctx = 4096;
    options.n_parallel = 4;
    bench_ = std::make_unique<Bench>(std::move(options));
    bench_->scheduler.reset();
    bench_->scheduler = std::make_unique<Scheduler>(*bench_->engine, [this] { return now_us_ += step_us_; });
  }

  /// Reads the prompts beside a conversation that decodes all the time; what happened, in order. `on_read` is told
  /// of every piece of the first prompt, between two steps.
  std::vector<Entry> read_beside_a_decode(const std::vector<std::vector<int32_t>>& prompts,
                                          const std::function<void(int64_t n_done)>& on_read = {}) {
    std::vector<Entry> log;  // of the scheduler's thread until all have ended
    Client talker;
    std::vector<Client> readers(prompts.size());
    std::vector<int64_t> n_done(prompts.size(), 0);
    for (size_t i = 0; i < prompts.size(); ++i)
      readers[i].on_event = [&, i](const GenerationEvent& event) {
        if (!event.is_prompt_progress || event.n_prompt_done == 0) return;
        log.push_back({static_cast<int>(i), event.n_prompt_done - n_done[i]});
        n_done[i] = event.n_prompt_done;
        if (i == 0 && on_read) on_read(n_done[i]);
      };
    std::atomic<bool> is_talking{false}, are_submitted{false};
    talker.on_event = [&](const GenerationEvent& event) {
      // All prompts come while the first token holds the scheduler's thread, and begin with one step.
      if (event.ids.empty()) return;
      log.push_back({-1});
      is_talking = true;
      while (!are_submitted) std::this_thread::yield();
    };
    GenerationRequest talk = bench_->greedy(std::vector(bench_->ids.begin(), bench_->ids.begin() + 20), 1000);
    talk.ignore_eos = true;
    talk.id_slot = 0;
    const uint64_t id = bench_->submit(talk, talker);
    while (!is_talking) std::this_thread::yield();
    for (size_t i = 0; i < prompts.size(); ++i) {
      GenerationRequest request = bench_->greedy(prompts[i], 8);
      request.id_slot = static_cast<int32_t>(i) + 1;
      bench_->submit(request, readers[i]);
    }
    are_submitted = true;
    answers_.clear();
    for (Client& reader : readers) answers_.push_back(reader.ids());
    bench_->scheduler->cancel(id);
    EXPECT_EQ(talker.last().stop_reason, StopReason::cancelled);
    return log;
  }

  /// Prompt tokens of a reader in every step that had some.
  static std::vector<int64_t> pieces(const std::vector<Entry>& log, int reader) {
    std::vector<int64_t> pieces;
    for (const Entry& entry : log)
      if (entry.reader == reader) pieces.push_back(entry.n);
    return pieces;
  }

  int64_t goal_us() const { return bench_->engine->options().step_ms * int64_t{1000}; }

  std::atomic<int64_t> step_us_{0};
  int64_t now_us_ = 0;  // the scheduler's thread's
  std::unique_ptr<Bench> bench_;
  std::vector<std::vector<int32_t>> answers_;  // of the readers
};

TEST_F(MixedSteps, PiecesGrowWhileTokensAreCheapAndShrinkWhenTheyAreDear) {
  open({});
  step_us_ = goal_us() / 4;
  const auto prompt = joined(bench_->ids, bench_->ids);
  const auto log = read_beside_a_decode({prompt}, [&](int64_t n_done) {
    if (n_done > 150) step_us_ = 100 * goal_us();
  });
  const auto read = pieces(log, 0);
  ASSERT_GE(read.size(), 6u);
  EXPECT_EQ(read[0], PromptAllowance::kMinTokens);
  EXPECT_GT(read[1], read[0]);
  EXPECT_GT(read[2], read[1]);
  const auto largest = std::max_element(read.begin(), read.end());
  EXPECT_GT(*largest, 100);
  ASSERT_GE(read.end() - largest, 4);
  for (auto n = largest + 1; n + 1 < read.end(); ++n) EXPECT_EQ(*n, PromptAllowance::kMinTokens);
}

TEST_F(MixedSteps, EveryStepHasATokenOfTheConversationThatDecodes) {
  open({});
  step_us_ = 100 * goal_us();
  const auto log = read_beside_a_decode({bench_->ids});
  const auto read = pieces(log, 0);
  EXPECT_EQ(std::ssize(read), (std::ssize(bench_->ids) + 15) / 16);
  ASSERT_GE(log.size(), 2 * read.size());
  for (size_t i = 0; i < 2 * read.size(); ++i) EXPECT_EQ(log[i].reader, i % 2 == 0 ? -1 : 0) << i;
}

TEST_F(MixedSteps, PromptsThatNobodyWaitsForAreNotLimited) {
  open({.n_ubatch = 128});
  step_us_ = 100 * goal_us();
  read_beside_a_decode({bench_->ids});  // dear
  std::vector<int64_t> done;
  Client client;
  client.on_event = [&](const GenerationEvent& event) {
    if (event.is_prompt_progress && event.n_prompt_done > 0) done.push_back(event.n_prompt_done);
  };
  GenerationRequest request = bench_->greedy(bench_->ids, 0);
  request.cache_prompt = false;
  bench_->submit(request, client);
  client.last();
  ASSERT_GE(done.size(), 3u);
  for (size_t i = 0; i + 1 < done.size(); ++i) EXPECT_EQ(done[i], 128 * static_cast<int64_t>(i + 1));
}

TEST_F(MixedSteps, PromptsShareTheAllowance) {
  open({});
  step_us_ = 100 * goal_us();
  const std::vector<int32_t> brief(bench_->ids.begin(), bench_->ids.begin() + 10);
  const auto log = read_beside_a_decode({bench_->ids, bench_->ids, brief});
  const auto first = pieces(log, 0), second = pieces(log, 1);
  EXPECT_EQ(pieces(log, 2), (std::vector<int64_t>{6, 4})) << "it does not wait for the long ones";
  ASSERT_EQ(first.size(), second.size());
  EXPECT_EQ(first[0] + second[0], 10);
  EXPECT_EQ(first[1] + second[1], 12);
  for (size_t i = 2; i + 1 < first.size(); ++i) EXPECT_EQ(first[i], 8) << i;
}

TEST_F(MixedSteps, AnswersDoNotDependOnThePieces) {
  std::vector<std::vector<std::vector<int32_t>>> all;
  for (const int32_t step_ms : {0, 1, 150}) {
    open({.step_ms = step_ms});
    step_us_ = 40000;
    const auto log = read_beside_a_decode({bench_->asking(0).prompt, bench_->asking(1).prompt});
    EXPECT_EQ(pieces(log, 0).front() > 200, step_ms == 0) << "half of a forward, or of 16 tokens";
    all.push_back(answers_);
  }
  EXPECT_FALSE(all[0][0].empty());
  EXPECT_EQ(all[1], all[0]);
  EXPECT_EQ(all[2], all[0]);
}

}  // namespace
}  // namespace sh::engine
