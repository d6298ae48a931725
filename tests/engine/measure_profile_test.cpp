// SPDX-License-Identifier: MIT
#include "engine/measure_profile.h"

#include <unistd.h>

#include <cmath>
#include <functional>
#include <numeric>

#include "engine/region_plan.h"
#include "engine/scribe_document.h"

namespace sh::engine {
namespace {

using compaction::BudgetPolicy;
using compaction::HeadProfile;
using kv::SequenceCache;

/// A file that goes when the test does.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text)
      : path_(testing::TempDir() + "shorthand_profile_" + std::to_string(getpid()) + ".json") {
    EXPECT_TRUE(write_file(path_, text).ok());
  }
  ~TemporaryFile() { unlink(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// A profile of scribe whose head 0 of layer 3 has half of all and whose last head has nothing.
HeadProfile lopsided(const Engine& engine) {
  HeadProfile profile{.model = profile_key(engine), .method = "by hand", .ratio = 8, .shares = {}};
  profile.shares.assign(5, std::vector<float>(2, 0.0625f));
  profile.shares[3][0] = 0.5f;
  profile.shares[4][1] = 0;
  return profile;
}

class MeasureProfile : public ScribeDocument {
 protected:
  static Result<std::unique_ptr<Engine>> open_with(const std::string& path) {
    return Engine::open({.model_path = std::string(SH_SOURCE_DIR) + "/models/scribe.gguf",
                         .n_ctx = 1024,
                         .n_threads = 2,
                         .compact_profile = path});
  }
};

TEST_F(MeasureProfile, SharesAreWhatACompactionKeeps) {
  const std::string before = fingerprint(*base_);
  for (const BudgetPolicy budget : {BudgetPolicy::global, BudgetPolicy::sensitivity}) {
    CompactionRequest request = request_of("self_study", 8);
    request.budget = budget;
    const auto profile = measure_profile(engine_->executor(), *base_, ids_, request);
    ASSERT_TRUE(profile.ok()) << profile.error().message;
    EXPECT_EQ(profile->model, profile_key(*engine_));
    EXPECT_EQ(profile->ratio, 8);
    EXPECT_EQ(profile->n_documents, 1);
    ASSERT_EQ(profile->shares.size(), 5u);
    EXPECT_TRUE(fingerprint(*base_) == before);

    request.validates = false;
    SequenceCache sequence = base_->fork();
    const auto report = compact_sequence(engine_->executor(), sequence, ids_, nullptr, request);
    ASSERT_TRUE(report.ok());
    const std::vector<int64_t> kept = kept_rows(*report);
    const auto total = static_cast<float>(std::accumulate(kept.begin(), kept.end(), int64_t{0}));
    float least = 1, most = 0;
    for_each_head([&](int32_t l, int32_t h) {
      const float share = profile->shares[static_cast<size_t>(l)].at(static_cast<size_t>(h));
      EXPECT_FLOAT_EQ(share, static_cast<float>(kept[static_cast<size_t>(l * 2 + h)]) / total);
      least = std::min(least, share);
      most = std::max(most, share);
    });
    EXPECT_GT(most, 2 * least) << "heads of a model differ";
  }
}

TEST_F(MeasureProfile, RefusesWhatMeasuresNothing) {
  for (const BudgetPolicy budget : {BudgetPolicy::uniform, BudgetPolicy::profile}) {
    CompactionRequest request = request_of("self_study", 8);
    request.budget = budget;
    const auto refused = measure_profile(engine_->executor(), *base_, ids_, request);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().kind, ErrorKind::invalid_argument);
    EXPECT_NE(refused.error().message.find("budget=global"), std::string::npos) << refused.error().message;
  }
  const std::atomic<bool> cancel{true};
  const auto cancelled = measure_profile(engine_->executor(), *base_, ids_, request_of("self_study", 8), &cancel);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().kind, ErrorKind::cancelled);
  SequenceCache empty(engine_->block_pool());
  EXPECT_FALSE(measure_profile(engine_->executor(), empty, {}, request_of("self_study", 8)).ok());
}

TEST_F(MeasureProfile, AnEngineSharesOutByTheFileThatItWasGiven) {
  const TemporaryFile file(compaction::format_head_profile(lopsided(*engine_)));
  const auto engine = open_with(file.path());
  ASSERT_TRUE(engine.ok()) << engine.error().message;
  SequenceCache sequence((*engine)->block_pool());
  ASSERT_TRUE((*engine)->prefill(sequence, ids_).ok());
  CompactionRequest request = request_of("select", 8);
  request.budget = BudgetPolicy::profile;
  const auto report = compact_sequence((*engine)->executor(), sequence, ids_, nullptr, request);
  ASSERT_TRUE(report.ok()) << report.error().message;
  const std::vector<int64_t> kept = kept_rows(*report);
  const auto total = static_cast<double>(std::accumulate(kept.begin(), kept.end(), int64_t{0}));
  EXPECT_GT(total, 400);
  for (size_t head = 0; head < 10; ++head)
    EXPECT_NEAR(static_cast<double>(kept[head]), total * (head == 6 ? 0.5 : head == 9 ? 0 : 0.0625), 1) << head;

  // A profile of the request's own comes first.
  HeadProfile other = lopsided(*engine_);
  std::swap(other.shares[3][0], other.shares[0][0]);
  request.profile = other;
  SequenceCache again((*engine)->block_pool());
  ASSERT_TRUE((*engine)->prefill(again, ids_).ok());
  const auto by_request = compact_sequence((*engine)->executor(), again, ids_, nullptr, request);
  ASSERT_TRUE(by_request.ok());
  EXPECT_NEAR(static_cast<double>(kept_rows(*by_request)[0]), total * 0.5, 1);
}

TEST_F(MeasureProfile, FilesThatDoNotFitAreRefusedWithTheReason) {
  struct Case {
    const char* what;
    std::string expected;
    std::function<void(HeadProfile&)> spoil;
  };
  const Case cases[] = {
      {"another model", "made for model 'qwen3/", [](HeadProfile& p) { p.model = "qwen3/8x128+128"; }},
      {"a layer less", "no share for L4H0",
       [](HeadProfile& p) {
         p.shares.pop_back();
         p.shares[0][0] += 0.0625f;
       }},
      {"a head too many", "L4H2",
       [](HeadProfile& p) {
         p.shares[4].push_back(0.0625f);
         p.shares[0][0] = 0;
       }},
      {"a negative share", "L0H0", [](HeadProfile& p) { p.shares[0][0] = -0.0625f; }},
      {"a sum that is not 1", "sum", [](HeadProfile& p) { p.shares[0][0] = 0; }},
  };
  for (const Case& c : cases) {
    HeadProfile profile = lopsided(*engine_);
    c.spoil(profile);
    const TemporaryFile file(compaction::format_head_profile(profile));
    const auto refused = open_with(file.path());
    ASSERT_FALSE(refused.ok()) << c.what;
    EXPECT_EQ(refused.error().kind, ErrorKind::invalid_argument) << c.what;
    for (const std::string& part : {c.expected, file.path()})
      EXPECT_NE(refused.error().message.find(part), std::string::npos)
          << c.what << ": " << refused.error().message;
  }
  const std::string good = compaction::format_head_profile(lopsided(*engine_));
  std::string partial_key = good;
  partial_key.replace(partial_key.find("L0H1"), 4, "L0H");
  for (const std::string& text : {partial_key, good.substr(0, good.size() / 2), std::string()}) {
    const TemporaryFile file(text);
    EXPECT_FALSE(open_with(file.path()).ok()) << text;
  }
  const auto missing = open_with("/does/not/exist.json");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("/does/not/exist.json"), std::string::npos);
}

TEST_F(MeasureProfile, WithoutOneItIsMissedBeforeAnyWork) {
  EngineOptions options{.model_path = std::string(SH_SOURCE_DIR) + "/models/scribe.gguf",
                        .compact_options = {{"budget", "profile"}}};
  const auto refused = Engine::open(options);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("--compact-profile"), std::string::npos) << refused.error().message;

  SequenceCache sequence = base_->fork();
  CompactionRequest request = request_of("self_study", 8);
  request.budget = BudgetPolicy::profile;
  const std::string before = fingerprint(sequence);
  bool has_begun = false;
  const auto report = compact_sequence(engine_->executor(), sequence, ids_, nullptr, request, nullptr,
                                       [&](const char*, double) { has_begun = true; });
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().kind, ErrorKind::invalid_argument);
  EXPECT_NE(report.error().message.find("--compact-profile"), std::string::npos) << report.error().message;
  EXPECT_FALSE(has_begun);
  EXPECT_TRUE(fingerprint(sequence) == before);
}

}  // namespace
}  // namespace sh::engine
