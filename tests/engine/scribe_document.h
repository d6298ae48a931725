// SPDX-License-Identifier: MIT
// One document read by scribe with its queries captured, and what tests of compactions on it share.
#pragma once

#include <string>
#include <vector>

#include "engine/compact_sequence.h"
#include "engine/scribe.h"

namespace sh::engine {

inline constexpr SelfStudyOptions kSmallStudy{
    .n_conversations = 24, .max_question_tokens = 24, .max_answer_tokens = 8};

inline CompactionRequest request_of(const std::string& method, double ratio = 4) {
  return {.method = method, .ratio = ratio, .self_study = kSmallStudy};
}

/// Row i of a head, everything that makes it up.
inline std::string row_bytes_of(const kv::HeadRows& rows, size_t i) {
  const size_t key = rows.keys.size() / rows.pos.size(), value = rows.values.size() / rows.pos.size();
  std::string bytes(reinterpret_cast<const char*>(rows.keys.data() + i * key), key);
  bytes.append(reinterpret_cast<const char*>(rows.values.data() + i * value), value);
  bytes.append(reinterpret_cast<const char*>(&rows.bias[i]), sizeof(float));
  return bytes;
}
inline std::string key_bytes_of(const kv::HeadRows& rows, size_t i) {
  const size_t key = rows.keys.size() / rows.pos.size();
  return {reinterpret_cast<const char*>(rows.keys.data() + i * key), key};
}

/// Every test works on forks of `base_`.
class ScribeDocument : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    engine_ = open_scribe({.n_ctx = 2048}).release();
    document_ = new Document(read_document("512", 0));
    ids_ = document_ids(*engine_, *document_);
    base_ = new kv::SequenceCache(engine_->block_pool());
    capture_ = new QueryCapture(engine_->model(), engine_->kv_layout(), int64_t{4} << 20);
    std::vector<kv::Pos> pos;
    for (size_t i = 0; i < ids_.size(); ++i) pos.push_back(kv::Pos(static_cast<int64_t>(i)));
    capture_->begin_batch(pos);
    ASSERT_LE(ids_.size(), 512u);
    ASSERT_TRUE(engine_->prefill(*base_, ids_, {.tap = capture_}).ok());
  }
  static void TearDownTestSuite() {
    delete capture_;
    delete base_;
    delete document_;
    delete engine_;
  }

  static CompactionReport compact(kv::SequenceCache& sequence, const CompactionRequest& request) {
    auto report = compact_sequence(engine_->executor(), sequence, ids_, capture_, request);
    EXPECT_TRUE(report.ok()) << request.method << ": " << (report.ok() ? "" : report.error().message);
    return report.ok() ? *report : CompactionReport{};
  }
  static int64_t n() { return static_cast<int64_t>(ids_.size()); }
  template <typename Visit>
  static void for_each_head(Visit&& visit) {
    for (int32_t l = 0; l < 5; ++l)
      for (int32_t h = 0; h < 2; ++h) visit(l, h);
  }

  static inline Engine* engine_;
  static inline Document* document_;
  static inline std::vector<int32_t> ids_;
  static inline kv::SequenceCache* base_;
  static inline QueryCapture* capture_;
};

}  // namespace sh::engine
