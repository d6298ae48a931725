// SPDX-License-Identifier: MIT
// The straight line of the program: text → tokens → forward → logits → sampler → token → text, for one
// conversation.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/conversation.h"
#include "engine/stop_reason.h"
#include "sampling/sampler.h"

namespace sh::engine {

struct GenerateOptions {
  sampling::SamplingParams sampling;
  uint64_t stream = 0;     // tells apart answers with the same seed
  int64_t n_predict = -1;  // -1: until the end of the turn or of the context
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool renders_special = false;  // control tokens appear in the text
  int64_t n_keep = 0;  // tokens at the start that automatic compaction leaves alone; -1: the first prompt
};

/// Who watches, and who may stop it. All may be empty.
struct GenerateHooks {
  std::function<void(std::string_view)> on_text;                    // whole characters, stop strings held back
  std::function<void(int64_t n_done, int64_t n_prompt)> on_prompt;  // after each piece of the prompt
  CompactionProgress on_compaction;
  std::function<void(const CompactionReport&)> on_compacted;  // after each automatic compaction
  const std::atomic<bool>* cancel = nullptr;
};

struct GenerateReport {
  std::string text;  // the answer
  StopReason stop_reason = StopReason::none;
  int64_t n_prompt = 0, n_answer = 0;
  double prompt_seconds = 0, answer_seconds = 0;  // forwards and sampling, compactions not counted
  int64_t answer_bytes = 0;       // that the answer's forwards had to read: weights, keys and values
  int64_t n_answer_forwards = 0;  // forwards that answer_seconds is about
  std::vector<CompactionReport> compactions;
  std::vector<std::string> compaction_failures;  // of automatic ones: why; what is the same all along is told once
  uint64_t logits_hash = 0;  // XXH3 of the last logits: the same run gives the same hash
};

/// The sampler of a generation that goes on from the tokens `past`: their repetition counts, and with `ignore_eos`
/// it never takes a token that ends one.
/// Errors: those of Sampler::create().
Result<sampling::Sampler> start_sampler(const Engine& engine, sampling::SamplingParams sampling, bool ignore_eos,
                                        uint64_t stream, std::span<const int32_t> past);

/// Reads `prompt` behind what the conversation holds, and answers. The conversation then holds the prompt and the
/// answer without the token that ended it.
/// Errors: invalid_argument (empty prompt, sampling parameters), context_exceeded (the prompt does not fit and
/// could not be compacted), out_of_memory. Pieces of the prompt that were read before an error stay.
Result<GenerateReport> generate(Engine& engine, Conversation& conversation, std::span<const int32_t> prompt,
                                const GenerateOptions& options, const GenerateHooks& hooks);

}  // namespace sh::engine
