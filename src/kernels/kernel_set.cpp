// SPDX-License-Identifier: MIT
#include "kernels/kernel_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/aligned.h"
#include "kernels/scratch.h"

namespace sh::kernels {

#define SH_PLUGIN(name) extern const KernelSet name;
#include "targets_list.inc"
#undef SH_PLUGIN

std::span<const KernelSet* const> kernel_sets() {
  static const std::vector<const KernelSet*> sets = [] {
    std::vector<const KernelSet*> all = {
#define SH_PLUGIN(name) &name,
#include "targets_list.inc"
#undef SH_PLUGIN
    };
    std::stable_sort(all.begin(), all.end(),
                     [](const KernelSet* a, const KernelSet* b) { return a->rank > b->rank; });
    return all;
  }();
  return sets;
}

namespace {

std::string supported_names() {
  std::string names;
  for (const KernelSet* set : kernel_sets())
    if (set->supported()) names += (names.empty() ? "" : ", ") + std::string(set->name);
  return names;
}

}  // namespace

Result<const KernelSet*> choose_kernels(std::string_view forced) {
  for (const KernelSet* set : kernel_sets()) {
    if (!forced.empty() && forced != set->name) continue;
    if (set->supported()) return set;
    if (!forced.empty())
      return Error{
          ErrorKind::unsupported,
          fmt::format("kernel set '{}' needs {}, which this CPU or operating system lacks; choose one of: {}",
                      set->name, set->needs, supported_names())};
  }
  return Error{ErrorKind::not_found,
               fmt::format("no kernel set is named '{}'; this machine can run: {}", forced, supported_names())};
}

std::string describe_choice(const KernelSet& chosen, std::string_view forced) {
  std::string text = fmt::format("{} (", chosen.name);
  if (chosen.needs[0] != '\0')
    text += fmt::format("this CPU has {}", chosen.needs);
  else
    text += "runs on any CPU";
  if (!forced.empty()) return text + "; forced by SHORTHAND_KERNELS)";
  for (const KernelSet* set : kernel_sets())
    if (set->rank > chosen.rank) text += fmt::format("; not {}: needs {}", set->name, set->needs);
  return text + ")";
}

int64_t attend_scratch_floats(int32_t n_queries, int32_t key_width, int32_t value_width) {
  const auto padded = [](int64_t n) { return (n + 15) / 16 * 16; };
  // Scales of groups of quantised keys (sums of queries): one for each 32 elements.
  const int64_t keys = padded(key_width) + padded(key_width) / 32;
  // Keys of one block decoded and of two transposed, scales of a block, values of a step.
  const int64_t rows = kMaxBlockRows * (2 * padded(key_width) + keys + kStepBlocks * padded(value_width));
  // Output, the query for quantised keys, weights, lanes of the sum, ranges of the step's views, maximum, factor.
  const int64_t per_query = padded(value_width) + keys + (kStepBlocks + 1) * kMaxBlockRows + 2 * kStepBlocks + 4;
  return rows + n_queries * per_query + 64;
}

std::byte* thread_scratch(size_t n_bytes) {
  thread_local AlignedBuffer<std::byte> buffer;
  return buffer.grow(n_bytes);
}

bool is_kv_dtype(DType dtype) {
  return tensor_format(dtype).block_elements <= 32 && dtype != DType::mxfp4;
}

std::string kv_dtype_names() {
  std::string names;
  for (const TensorFormat* format : tensor_formats())
    if (is_kv_dtype(format->dtype)) names += fmt::format("{}{}", names.empty() ? "" : ", ", format->name);
  return names;
}

}  // namespace sh::kernels
