// SPDX-License-Identifier: MIT
// What a KL of the replay means on this model: a scale in units that everybody knows, and the verdict in one word.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <span>

#include "engine/compaction_report.h"
#include "engine/executor.h"

namespace sh::engine {

/// Mean KL of a replay when all keys and values of a cache are rounded to q8_0 or q4_0. NaN: not measured.
struct VerdictScale {
  double kl_q8 = std::numeric_limits<double>::quiet_NaN();
  double kl_q4 = std::numeric_limits<double>::quiet_NaN();
};

/// Measures the scale on the first 256 of `ids`: they are read into a cache of their own (f16, outside the
/// engine's pool), 128 of them repeated behind the repeat instruction (without a chat template that allows it:
/// what follows them predicted), once as it is and once with its rows rounded to each format and back, in blocks
/// of 32 elements of a row (the last one shorter where a head is narrow). Errors: cancelled, out_of_memory. Fewer
/// than 64 ids give NaN, no error. Cost:   forwards of some 800 tokens; two caches of 256 tokens; the memory of a
/// ReplayReference of 128 tokens.
Result<VerdictScale> measure_verdict_scale(Executor& executor, std::span<const int32_t> ids,
                                           const std::atomic<bool>* cancel = nullptr);

/// What a replay consists of. To repeat a text word for word asks more of a cache than to answer questions on it.
enum class ReplayKind { answers, repetition };

/// The word for a replay: transparent (KL no more than that of q8_0 keys and values), good (no more than that of
/// q4_0, and less than 5 % of the confident predictions changed), gist (the likeliest token is the same often
/// enough that most answers stay), reject; unknown with fewer than 32 tokens or without a scale. Figures that are
/// not finite are rejected.
Verdict verdict_of(const ReplayCheck& check, const VerdictScale& scale, ReplayKind kind);

/// The scale of one engine's model, measured once, with the first conversation that is long enough.
/// Threads: any; callers wait for the one that measures.
class VerdictScales {
 public:
  /// Errors: those of measure_verdict_scale(); the next call tries again.
  Result<VerdictScale> get(Executor& executor, std::span<const int32_t> ids,
                           const std::atomic<bool>* cancel = nullptr);

 private:
  std::mutex mutex_;
  VerdictScale scale_;
};

}  // namespace sh::engine
