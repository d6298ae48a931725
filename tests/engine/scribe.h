// SPDX-License-Identifier: MIT
// The model that really retrieves, and its documents with questions: what the engine's tests run on.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "engine/compaction_report.h"
#include "engine/engine.h"

namespace sh::engine {

inline std::unique_ptr<Engine> open_scribe(EngineOptions options = {}) {
  options.model_path = std::string(SH_SOURCE_DIR) + "/models/scribe.gguf";
  if (options.n_ctx == 0) options.n_ctx = 1024;
  if (options.n_threads == 0) options.n_threads = 2;
  auto engine = Engine::open(std::move(options));
  EXPECT_TRUE(engine.ok()) << (engine.ok() ? "" : engine.error().message);
  return engine.ok() ? std::move(*engine) : nullptr;
}

struct Question {
  std::string text, answer;
};
struct Document {
  std::string context;
  std::vector<Question> questions;
};
/// The index-th document of models/recall/NAME.jsonl.
inline Document read_document(const std::string& name, size_t index) {
  const std::string text = read_file(std::string(SH_SOURCE_DIR) + "/models/recall/" + name + ".jsonl").value();
  size_t begin = 0;
  for (size_t i = 0; i < index; ++i) begin = text.find('\n', begin) + 1;
  const Json json = parse_json(text.substr(begin, text.find('\n', begin) - begin)).value();
  Document document{.context = json["context"].get<std::string>(), .questions = {}};
  for (const Json& question : json["questions"])
    document.questions.push_back({question["q"].get<std::string>(), question["answer"].get<std::string>()});
  return document;
}

inline std::vector<int32_t> encode(const Engine& engine, const std::string& text) {
  return engine.tokenizer().encode(text, {.add_special = false, .parse_special = true});
}
inline std::string text_of(const Engine& engine, std::span<const int32_t> ids) {
  std::string text;
  for (const int32_t id : ids) text += engine.tokenizer().piece(id, true);
  return text;
}
inline std::vector<int32_t> document_ids(const Engine& engine, const Document& document) {
  return encode(engine, "<|bos|><|system|>" + document.context + "<|end|>");
}
inline std::vector<int32_t> question_ids(const Engine& engine, const std::string& question) {
  return encode(engine, "<|user|>" + question + "<|end|><|assistant|>");
}
inline std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
inline std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(' ');
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

/// Greedy continuation from a fork; stops behind an end of generation.
inline std::vector<int32_t> continue_greedily(Engine& engine, const kv::SequenceCache& sequence, const std::vector<int32_t>& prompt,
                                              size_t n_tokens) {
  kv::SequenceCache fork = sequence.fork();
  std::vector<int32_t> ids;
  Mat<float> logits = engine.prefill(fork, prompt).value();
  while (ids.size() < n_tokens) {
    const float* row = logits.row(0);
    ids.push_back(static_cast<int32_t>(std::max_element(row, row + logits.cols) - row));
    if (engine.tokenizer().is_end_of_generation(ids.back())) break;
    logits = engine.prefill(fork, std::span(&ids.back(), 1)).value();
  }
  return ids;
}
inline std::string ask(Engine& engine, const kv::SequenceCache& sequence, const std::string& question) {
  std::vector<int32_t> ids = continue_greedily(engine, sequence, question_ids(engine, question), 24);
  if (!ids.empty() && engine.tokenizer().is_end_of_generation(ids.back())) ids.pop_back();
  return trimmed(text_of(engine, ids));
}

/// Everything that a cache holds, as bytes: equal strings are equal conversations.
inline std::string fingerprint(const kv::SequenceCache& sequence) {
  std::string bytes;
  const auto add = [&](const void* data, size_t n) { bytes.append(static_cast<const char*>(data), n); };
  const auto add_number = [&](int64_t value) { add(&value, sizeof value); };
  add_number(sequence.next_pos().value);
  add_number(sequence.compacted_end().value);
  add_number(sequence.n_compactions());
  const auto& layers = sequence.pool().layout().layers;
  for (size_t l = 0; l < layers.size(); ++l)
    for (int32_t h = 0; h < layers[l].n_heads; ++h) {
      const kv::HeadRows rows = sequence.copy_head(static_cast<int32_t>(l), h);
      add_number(static_cast<int64_t>(rows.pos.size()));
      add(rows.keys.data(), rows.keys.size());
      add(rows.values.data(), rows.values.size());
      add(rows.bias.data(), rows.bias.size() * sizeof(float));
      add(rows.pos.data(), rows.pos.size() * sizeof(kv::Pos));
    }
  return bytes;
}

/// Takes blocks of the pool away while it lives, so that `bytes_left` remain.
class PoolFiller {
 public:
  PoolFiller(kv::BlockPool& pool, int64_t bytes_left) : pool_(pool) {
    const int32_t arena = pool.arena_of_layer(0);
    while (pool.bytes_available() - pool.block_bytes(arena) >= bytes_left) blocks_.push_back(pool.allocate(arena).value());
  }
  ~PoolFiller() { pool_.release(blocks_); }
  PoolFiller(const PoolFiller&) = delete;
  PoolFiller& operator=(const PoolFiller&) = delete;

 private:
  kv::BlockPool& pool_;
  std::vector<kv::BlockId> blocks_;
};

/// Rows that a compaction kept of every head.
inline std::vector<int64_t> kept_rows(const CompactionReport& report) {
  std::vector<int64_t> rows;
  for (const auto& head : report.heads) rows.push_back(head.n_kept);
  return rows;
}

}  // namespace sh::engine
